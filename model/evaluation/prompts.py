"""The prompts of benchmarks: templates/eval/<benchmark>.yaml, read and checked."""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from model.evaluation.interface import Question
from pipelines.schema import LETTERS
from pipelines.templates.sets import ROOT, TemplateError


@dataclass(frozen=True)
class Prompt:
    """A benchmark's prompt: a text with `{field}` placeholders and the most tokens that an answer may have.
    without_options: the text for questions without options, if the benchmark has both kinds."""

    text: str
    max_new_tokens: int
    without_options: str | None = None

    def render(self, question: Question) -> str:
        """Returns the user's text; `{options}` becomes one lettered line per option, as in training."""
        text = self.text if question.options or self.without_options is None else self.without_options
        try:
            return text.format_map({"options": lettered(question.options), **question.fields})
        except KeyError as error:
            known = ", ".join(["options", *question.fields])
            name = error.args[0]
            raise TemplateError(f"the prompt uses {{{name}}}, but question {question.id} has only {known}") from None


def load_prompt(benchmark: str) -> Prompt:
    """Reads templates/eval/<benchmark>.yaml. Raises TemplateError, naming the file and key, if it is invalid."""
    path = ROOT / "eval" / f"{benchmark}.yaml"
    second = "prompt_without_options"
    content = load_texts(path, ("prompt", second), "max_new_tokens", optional=second)
    return Prompt(content["prompt"], content["max_new_tokens"], content.get(second))


def load_texts(path: Path, texts: Sequence[str], length: str, optional: str | None = None) -> dict[str, Any]:
    """Reads a YAML file of texts with plain `{field}` placeholders and one length in tokens; the key `optional` may be
    absent. Raises TemplateError, naming the file and key, if the file is invalid."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TemplateError(f"{path} is missing: write the benchmark's prompt there") from None
    except yaml.YAMLError as error:
        raise TemplateError(f"{path}: not valid YAML: {error}") from None
    needed = [key for key in (*texts, length) if key != optional]
    if not isinstance(content, dict) or not set(needed) <= set(content) <= {*texts, length}:
        allowed = f" (and may have {optional})" if optional else ""
        raise TemplateError(f"{path}: must have exactly the keys {', '.join(needed)}{allowed}")
    for key in texts:
        if key in content:
            _check_text(path, key, content[key])
    if type(content[length]) is not int or content[length] < 1:
        raise TemplateError(f"{path}: `{length}` must be a positive integer")
    return content


def _check_text(path: Path, key: str, text: Any) -> None:
    if not isinstance(text, str) or not text.strip():
        raise TemplateError(f"{path}: `{key}` must be a non-empty string")
    try:
        placeholders = [(name, spec, conversion) for _, name, spec, conversion in string.Formatter().parse(text)]
    except ValueError as error:
        raise TemplateError(f"{path}: `{key}`: {error}; write a literal brace as {{{{ or }}}}") from None
    for name, spec, conversion in placeholders:
        if name is not None and (not name.isidentifier() or spec or conversion):
            raise TemplateError(f"{path}: `{key}`: {{{name}}} is not a plain field name")


def lettered(options: Sequence[str]) -> str:
    """Returns one lettered line per option, such as "A. a dog"."""
    return "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False))
