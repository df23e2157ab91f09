"""Tests of the order of samples: shares, prefixes, epochs and direct access."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.mixture.order import PERIOD, make_mixture, shuffled_indices

PAPER = {"coyo": 0.077, "vqav2": 0.103, "gqa": 0.103, "ocrvqa": 0.051, "vsr": 0.026, "sqa": 0.051, "aokvqa": 0.103}


@pytest.mark.parametrize("weights", [PAPER, {"a": 1.0}, {"a": 1, "b": 1}, {"a": 0.999, "b": 0.001}])
def test_every_prefix_contains_each_dataset_to_within_one_example_of_its_share(weights):
    mixture = make_mixture(weights, dict.fromkeys(weights, 7), seed=3)
    dataset, _ = mixture.locate(np.arange(2 * PERIOD + 17))
    counts = np.cumsum(dataset[:, None] == np.arange(len(weights)), axis=0)
    shares = np.array(mixture.quotas) / PERIOD
    assert np.abs(counts - np.arange(1, len(dataset) + 1)[:, None] * shares).max() < 1


def test_shares_are_the_normalised_weights():
    mixture = make_mixture(PAPER, dict.fromkeys(PAPER, 7), seed=0)
    for name, quota in zip(mixture.names, mixture.quotas, strict=True):
        assert abs(quota / PERIOD - PAPER[name] / sum(PAPER.values())) < 1 / PERIOD
    assert sum(mixture.quotas) == PERIOD


def test_any_index_can_be_located_directly():
    mixture = make_mixture({"a": 2, "b": 1}, {"a": 1000, "b": 10}, seed=1)
    dataset, example = mixture.locate(np.arange(300_000))
    for index in (0, 1, 70_000, 299_999):
        direct = mixture.locate(np.array([index]))
        assert (direct[0][0], direct[1][0]) == (dataset[index], example[index])


def test_every_epoch_of_a_dataset_shows_each_example_once_in_a_different_order():
    mixture = make_mixture({"a": 2, "b": 1}, {"a": 1000, "b": 10}, seed=1)
    dataset, example = mixture.locate(np.arange(9000))
    of_a = example[dataset == 0]
    first, second = of_a[:1000], of_a[1000:2000]
    assert sorted(first) == sorted(second) == list(range(1000))
    assert (first != second).mean() > 0.9


def test_counts_agree_with_the_order():
    mixture = make_mixture(PAPER, dict.fromkeys(PAPER, 7), seed=0)
    dataset, _ = mixture.locate(np.arange(PERIOD + 123))
    assert mixture.counts(PERIOD + 123) == {n: int((dataset == d).sum()) for d, n in enumerate(mixture.names)}


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 3000), seed=st.integers(0, 2**64 - 1))
def test_shuffled_is_a_permutation_of_any_size(size, seed):
    examples = shuffled_indices(np.arange(2 * size), size, seed)
    assert sorted(examples[:size]) == sorted(examples[size:]) == list(range(size))


def test_a_share_below_the_denominator_is_refused():
    with pytest.raises(ValueError, match="b: a share below"):
        make_mixture({"a": 1, "b": 1e-9}, {"a": 5, "b": 5}, seed=0)
