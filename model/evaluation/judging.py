"""What judged benchmarks share: the judge's prompt, one verdict for each answer, and what the scores say of it.

A reply without a verdict is asked about once more; what then has none is named in the scores, never taken for a zero.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from model.evaluation.base import NAMED, Benchmark, Judge, Judging, Messages, Predictions, answered, load_texts, named
from pipelines.store import fingerprint
from pipelines.templates import ROOT, TemplateError

NO_JUDGE = "none: no judge was configured, so what needs one is left out"
_SHOWN = 80  # characters of a reply
_THOUGHTS = re.compile(r"\s*<think>.*?</think>", re.DOTALL)  # what some endpoints leave before the reply of a reasoner


@dataclass(frozen=True)
class JudgePrompt:
    """How a judge is asked. system, user: the first messages, with `{field}` places; again: what it is told where its
    reply holds no verdict; max_tokens: of a reply."""

    system: str
    user: str
    again: str
    max_tokens: int

    def render(self, fields: Mapping[str, str]) -> Messages:
        try:
            texts = {"system": self.system.format_map(fields), "user": self.user.format_map(fields)}
        except KeyError as error:
            raise TemplateError(
                f"the judge's prompt names {{{error.args[0]}}}; it may name {', '.join(fields)}"
            ) from None
        return [{"role": role, "content": text} for role, text in texts.items()]


def load_judge_prompt(benchmark: str) -> JudgePrompt:
    """Reads templates/eval/judge/<benchmark>.yaml. Raises TemplateError naming file and key."""
    path = ROOT / "eval" / "judge" / f"{benchmark}.yaml"
    return JudgePrompt(**load_texts(path, ("system", "user", "again"), "max_tokens"))


def judged(benchmark: Benchmark, predictions: Predictions, judge: Judge | None) -> Predictions:
    """The predictions with a judge's verdicts; as they are where there is no judge, the benchmark needs none, or the
    file had verdicts already. Raises what the judge raises."""
    if judge is None or benchmark.judge is None or predictions.judging is not None:
        return predictions
    return replace(predictions, judging=benchmark.judge(predictions, judge))


def judge_each(
    judge: Judge, benchmark: str, asked: Mapping[str, Mapping[str, str]], read: Callable[[str, str], Any]
) -> Judging:
    """A verdict on each answer.

    asked: the prompt's fields by question id. read: (id, reply) → verdict, None where the reply holds none. Raises
    TemplateError for the prompt, and what the judge raises.
    """
    prompt = load_judge_prompt(benchmark)
    conversations = {key: prompt.render(fields) for key, fields in asked.items()}
    replies = judge.ask(conversations, prompt.max_tokens)

    def verdict(key: str, reply: str) -> Any:
        return read(key, _THOUGHTS.sub("", reply, count=1) if _THOUGHTS.match(reply) else reply)

    verdicts = {key: verdict(key, reply.text) for key, reply in replies.items() if reply.text is not None}
    unread = [key for key, value in verdicts.items() if value is None]
    longer = {
        key: [
            *conversations[key],
            {"role": "assistant", "content": replies[key].text or ""},
            {"role": "user", "content": prompt.again},
        ]
        for key in unread
    }
    if longer:
        seconds = judge.ask(longer, prompt.max_tokens)
        verdicts |= {key: verdict(key, reply.text) for key, reply in seconds.items() if reply.text is not None}
        replies |= {key: reply for key, reply in seconds.items() if reply.text is not None}
    given = {key: value for key, value in verdicts.items() if value is not None}
    unjudged = {key: _reason(replies[key].text, replies[key].error) for key in asked if key not in given}
    by = {**judge.by, "prompt": f"judge/{benchmark}.yaml", "prompt_fingerprint": fingerprint(vars(prompt))}
    return Judging(by, given, unjudged)


def _reason(reply: str | None, error: str | None) -> str:
    return error or f"a reply without a verdict: {(reply or '')[:_SHOWN]!r}"


def judge_report(predictions: Predictions) -> dict[str, Any]:
    """What the scores say of the judge: who it was, and of the answers without verdict how many, which and why."""
    judging = predictions.judging
    if judging is None:
        return {"judge": NO_JUDGE}
    told: dict[str, Any] = {"judge": dict(judging.by)}
    if judging.unjudged:
        reasons = dict(list(judging.unjudged.items())[:NAMED])
        told["unjudged"] = {"count": len(judging.unjudged), "reasons": reasons}
    return told


def counts(predictions: Predictions) -> dict[str, Any]:
    """What the scores of a benchmark say that only a judge can score, beside the scores: questions, answers, empty
    ones, the judge. Raises EvaluationError where there is neither answer nor verdict."""
    told: dict[str, Any] = {"num_questions": len(predictions.questions)}
    if predictions.answers or predictions.judging is None:
        texts, told = answered(predictions, needs_truth=False)
        told["num_answered"] = told.pop("num_scored")
        if empty := [question.id for question, text in texts if not text.strip()]:
            told["empty_answers"] = named(empty)
    return told | judge_report(predictions)
