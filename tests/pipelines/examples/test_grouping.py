"""Grouping of turns into conversations."""

import numpy as np

from pipelines.examples.grouping import group_turns


def groups(row, image, turn=None, *, dialogue=False, max_turns=3, seed=0):
    row, image = np.array(row), np.array(image)
    turn = np.zeros_like(row) if turn is None else np.array(turn)
    grouping = group_turns(row, turn, image, is_dialogue=dialogue, max_turns=max_turns, dataset="some", seed=seed)
    bounds = zip(grouping.offsets[:-1], grouping.offsets[1:], strict=True)
    return [grouping.order[a:b].tolist() for a, b in bounds]


def test_turns_of_an_image_are_grouped_up_to_the_limit():
    image = [0, 1, 0, 0, 1, 0, 0, 0]
    found = groups(range(8), image)
    assert sorted(t for g in found for t in g) == list(range(8))
    assert [len(g) for g in found] == [3, 3, 2]
    assert all(len({image[t] for t in g}) == 1 for g in found)


def test_each_turn_without_an_image_is_its_own_conversation():
    assert groups([4, 5, 6], [-1, -1, -1]) == [[0], [1], [2]]


def test_the_order_depends_only_on_seed_and_row():
    rows = list(range(100, 140))
    first, second = groups(rows, [0] * 40, max_turns=40)[0], groups(rows[::-1], [0] * 40, max_turns=40)[0]
    assert [rows[t] for t in first] == [rows[::-1][t] for t in second]
    assert first != sorted(first)
    assert groups(rows, [0] * 40, max_turns=40, seed=1)[0] != first


def test_dialogues_keep_their_order():
    assert groups([7, 7, 5, 7], [0, 0, 0, 0], [2, 0, 0, 1], dialogue=True) == [[2], [1, 3, 0]]
