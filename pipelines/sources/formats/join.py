"""Joins two streams of records by id without holding either stream in memory."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from pipelines.sources.fields import Reject, show

L = TypeVar("L")
R = TypeVar("R")
V = TypeVar("V")


def join(
    left: Iterable[L],
    right: Iterable[R],
    left_id: Callable[[L], Any],
    right_id: Callable[[R], Any],
    value: Callable[[R], V],
    names: tuple[str, str],
) -> Iterator[tuple[L, V] | Reject]:
    """Yields one item per left record, in order, then one Reject per right record without a left record.

    left_id, right_id: record → its id; value: right record → the part to keep; all three may raise Reject.
    names: what rejects call a left and a right record.
    Memory: the ids, and the values of right records that precede the left record with their id: none if both streams
    have the same order, as in the official files; in the worst case the values of the entire right stream.
    Rejects: duplicate_id, unmatched_<left name>, unmatched_<right name>, and those of the three functions.
    """
    left_name, right_name = names
    taken: set[Any] = set()
    waiting: dict[Any, V | Reject] = {}
    extra: list[Reject] = []

    def arrivals() -> Iterator[tuple[Any, V | Reject]]:
        """Yields (id, value) for the first right record of each id."""
        for record in right:
            try:
                key = right_id(record)
            except Reject as reject:
                extra.append(Reject(reject.reason, f"{right_name}: {reject.detail}"))
                continue
            if key in taken or key in waiting:
                extra.append(Reject("duplicate_id", f"{right_name}: id {show(key)} occurs more than once"))
                continue
            try:
                yield key, value(record)
            except Reject as reject:
                yield key, reject

    arriving = arrivals()

    def take(key: Any) -> V | Reject:
        if key in waiting:
            return waiting.pop(key)
        for other, found in arriving:
            if other == key:
                return found
            waiting[other] = found
        return Reject(f"unmatched_{left_name}", f"no {right_name} has id {show(key)}")

    for record in left:
        try:
            key = left_id(record)
        except Reject as reject:
            yield reject
            continue
        if key in taken:
            yield Reject("duplicate_id", f"{left_name}: id {show(key)} occurs more than once")
            continue
        found = take(key)
        taken.add(key)
        yield found if isinstance(found, Reject) else (record, found)

    waiting.update(arriving)
    yield from extra
    for key in waiting:
        yield Reject(f"unmatched_{right_name}", f"no {left_name} has id {show(key)}")
