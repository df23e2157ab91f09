"""The streaming join yields every record of both sides once, in any order, and buffers nothing if the orders agree."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.sources.fields import Reject, field
from pipelines.sources.formats.join import join


def joined(left, right):
    def key(record):
        return field(record, "id", int)

    return list(join(left, right, key, key, lambda record: field(record, "v", str), names=("question", "annotation")))


def ids(*values):
    return [{"id": value, "v": f"v{value}"} for value in values]


def test_in_the_same_order_the_right_side_is_read_only_as_far_as_the_left():
    read = []

    def right():
        for record in ids(1, 2, 3):
            read.append(record["id"])
            yield record

    def key(record):
        return record["id"]

    pairs = join(ids(1, 2, 3), right(), key, key, key, names=("left", "right"))
    assert next(pairs) == ({"id": 1, "v": "v1"}, 1)
    assert read == [1]
    assert len(list(pairs)) == 2


def test_unmatched_and_repeated_records_are_rejected():
    result = joined([*ids(5, 1, 1), {"v": "x"}, *ids(2, 3)], [*ids(1, 9, 2, 2), {"id": True}, {"id": 3, "v": 8}])
    assert [r[1] if isinstance(r, tuple) else (r.reason, r.detail) for r in result] == [
        ("unmatched_question", "no annotation has id 5"),
        "v1",
        ("duplicate_id", "question: id 1 occurs more than once"),
        ("missing_field", "id is missing; the fields are ['v']"),
        "v2",
        ("wrong_type", "v is 8, not str"),
        ("duplicate_id", "annotation: id 2 occurs more than once"),
        ("wrong_type", "annotation: id is True, not int"),
        ("unmatched_annotation", "no question has id 9"),
    ]


@settings(max_examples=200, deadline=None)
@given(left=st.lists(st.integers(0, 8), max_size=12), right=st.lists(st.integers(0, 8), max_size=12))
def test_no_record_is_lost_in_any_order(left, right):
    result = joined(ids(*left), ids(*right))
    pairs = [r for r in result if not isinstance(r, Reject)]
    assert all(value == f"v{record['id']}" for record, value in pairs)
    assert sorted(record["id"] for record, _ in pairs) == sorted(set(left) & set(right))
    reasons = Counter(r.reason for r in result if isinstance(r, Reject))
    assert reasons["unmatched_question"] == len(set(left) - set(right))
    assert reasons["unmatched_annotation"] == len(set(right) - set(left))
    assert reasons["duplicate_id"] == len(left) - len(set(left)) + len(right) - len(set(right))
    # Left records come first, in their order.
    assert [r[0]["id"] for r in result[: len(left)] if isinstance(r, tuple)] == [
        i for n, i in enumerate(left) if i in right and i not in left[:n]
    ]
