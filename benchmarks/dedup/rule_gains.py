"""What each rule of de-duplication gains and loses on labelled pairs, and how sure such shares are."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from unittest.mock import patch

import numpy as np

from pipelines.dedup import alignment, fact_rules, similarity
from pipelines.dedup.parsed_turn import ParsedTurn

Z = 1.96  # of a 95 % interval


def without(rule: str) -> Callable[[], AbstractContextManager]:
    return lambda: patch.object(similarity, rule, lambda *_: False)


def without_fact_rule(rule: str) -> Callable[[], AbstractContextManager]:
    rest = tuple(each for each in fact_rules.FACT_RULES if each.__name__ != rule)
    return lambda: patch.object(similarity, "FACT_RULES", rest)


# Name → a context in which the rule does not apply.
RULES: dict[str, Callable[[], AbstractContextManager]] = {
    "all rules": nullcontext,
    "without: opposites at one position": without("are_contradictory"),
    "without: restatements by an opposite": without("are_opposite_claims"),
    "without: equal names": without("is_named_alike"),
    "without: counts of different sets": lambda: patch.object(alignment, "MISSING", np.inf),
    "without: names are not counts": lambda: patch.object(ParsedTurn, "is_label", lambda *_: False),
    "without: swapped roles": without_fact_rule("swap_roles"),
    "without: a yes and a no": without_fact_rule("deny_another"),
    "without: a no to several things": without_fact_rule("deny_one_of_several"),
}


def interval(found: int, of: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    if not of:
        return 0.0, 1.0
    share, scale = found / of, 1 + Z**2 / of
    middle = (share + Z**2 / (2 * of)) / scale
    half = Z * np.sqrt(share * (1 - share) / of + Z**2 / (4 * of**2)) / scale
    return float(middle - half), float(middle + half)


def share(chosen: np.ndarray) -> str:
    """Formats the share of True with its counts and its interval."""
    if not len(chosen):
        return ""
    low, high = interval(int(chosen.sum()), len(chosen))
    return f"{chosen.mean():.1%} ({chosen.sum()} of {len(chosen)}; {low:.1%} to {high:.1%})"


def gains(decide: Callable[[], np.ndarray], is_dup: np.ndarray) -> list[dict[str, str]]:
    """Returns a row per rule: what is dropped and found without it. decide: returns (P,) bool, the pairs decided to be
    duplicates under the rules that apply when it is called."""
    rows = []
    for name, context in RULES.items():
        with context():
            decided = decide()
        rows.append({"rules": name, "distinct dropped": share(decided[~is_dup]), "dup found": share(decided[is_dup])})
    return rows
