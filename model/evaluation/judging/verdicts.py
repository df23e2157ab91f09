"""What judged benchmarks share: the judge's prompt, one verdict per answer, and the judge's part of the scores.

If a reply contains no verdict, the judge is asked once more. An answer that still has no verdict is reported in the
scores and never counted as zero.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from model.evaluation.interface import Benchmark, Judge, Judging, Messages, Predictions
from model.evaluation.prompts import load_texts
from model.evaluation.scoring.common import MAX_LISTED_IDS, count_and_ids, split_scorable
from pipelines.core.store import fingerprint
from pipelines.templates.sets import ROOT, TemplateError

NO_JUDGE = "none: no judge was configured, so scores that need one are omitted"
_SHOWN = 80  # characters of a reply
_THOUGHTS = re.compile(r"\s*<think>.*?</think>", re.DOTALL)  # the reasoning that some endpoints leave in a reply


@dataclass(frozen=True)
class JudgePrompt:
    """A judge's prompt. system, user: the first messages, with `{field}` placeholders; again: the message that is sent
    if a reply contains no verdict; max_tokens: the limit of a reply."""

    system: str
    user: str
    again: str
    max_tokens: int

    def render(self, fields: Mapping[str, str]) -> Messages:
        try:
            texts = {"system": self.system.format_map(fields), "user": self.user.format_map(fields)}
        except KeyError as error:
            raise TemplateError(
                f"the judge's prompt uses {{{error.args[0]}}}, but it may use only {', '.join(fields)}"
            ) from None
        return [{"role": role, "content": text} for role, text in texts.items()]


def load_judge_prompt(benchmark: str) -> JudgePrompt:
    """Reads templates/eval/judge/<benchmark>.yaml. Raises TemplateError, naming the file and key, if it is invalid."""
    path = ROOT / "eval" / "judge" / f"{benchmark}.yaml"
    return JudgePrompt(**load_texts(path, ("system", "user", "again"), "max_tokens"))


def add_verdicts(benchmark: Benchmark, predictions: Predictions, judge: Judge | None) -> Predictions:
    """Returns the predictions with a judge's verdicts; unchanged if there is no judge, the benchmark needs none or the
    predictions already have verdicts. Raises what the judge raises."""
    if judge is None or benchmark.judge is None or predictions.judging is not None:
        return predictions
    return replace(predictions, judging=benchmark.judge(predictions, judge))


def ask_verdicts(
    judge: Judge, benchmark: str, asked: Mapping[str, Mapping[str, str]], read: Callable[[str, str], Any]
) -> Judging:
    """Asks the judge for a verdict on each answer.

    asked: the prompt's fields by question id. read: (id, reply) → verdict, None if the reply contains none. Raises
    TemplateError if the prompt is invalid, and what the judge raises.
    """
    prompt = load_judge_prompt(benchmark)
    conversations = {key: prompt.render(fields) for key, fields in asked.items()}
    replies = judge.ask(conversations, prompt.max_tokens)

    def verdict(key: str, reply: str) -> Any:
        return read(key, _THOUGHTS.sub("", reply, count=1) if _THOUGHTS.match(reply) else reply)

    verdicts = {key: verdict(key, reply.text) for key, reply in replies.items() if reply.text is not None}
    unparsed = [key for key, value in verdicts.items() if value is None]
    continued = {
        key: [
            *conversations[key],
            {"role": "assistant", "content": replies[key].text or ""},
            {"role": "user", "content": prompt.again},
        ]
        for key in unparsed
    }
    if continued:
        retried = judge.ask(continued, prompt.max_tokens)
        verdicts |= {key: verdict(key, reply.text) for key, reply in retried.items() if reply.text is not None}
        replies |= {key: reply for key, reply in retried.items() if reply.text is not None}
    given = {key: value for key, value in verdicts.items() if value is not None}
    unjudged = {key: _reason(replies[key].text, replies[key].error) for key in asked if key not in given}
    by = {**judge.by, "prompt": f"judge/{benchmark}.yaml", "prompt_fingerprint": fingerprint(vars(prompt))}
    return Judging(by, given, unjudged)


def _reason(reply: str | None, error: str | None) -> str:
    return error or f"a reply without a verdict: {(reply or '')[:_SHOWN]!r}"


def judge_report(predictions: Predictions) -> dict[str, Any]:
    """Returns the judge's part of the scores: who judged, and which answers have no verdict, how many and why."""
    judging = predictions.judging
    if judging is None:
        return {"judge": NO_JUDGE}
    report: dict[str, Any] = {"judge": dict(judging.by)}
    if judging.unjudged:
        reasons = dict(list(judging.unjudged.items())[:MAX_LISTED_IDS])
        report["unjudged"] = {"count": len(judging.unjudged), "reasons": reasons}
    return report


def counts(predictions: Predictions) -> dict[str, Any]:
    """Returns the counts that a judged benchmark reports next to its scores: questions, answers, empty answers, and the
    judge. Raises EvaluationError if there are neither answers nor verdicts."""
    report: dict[str, Any] = {"num_questions": len(predictions.questions)}
    if predictions.answers or predictions.judging is None:
        texts, report = split_scorable(predictions, needs_truth=False)
        report["num_answered"] = report.pop("num_scored")
        if empty := [question.id for question, text in texts if not text.strip()]:
            report["empty_answers"] = count_and_ids(empty)
    return report | judge_report(predictions)
