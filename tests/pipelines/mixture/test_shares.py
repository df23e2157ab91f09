"""Tests of the balancing strategies, against hand-computed values and invariants."""

import itertools

import numpy as np
import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipelines.mixture.order import PERIOD, MixtureError, mix
from pipelines.mixture.shares import Balance, BalanceError, Size, cap_shares, shares

SIZES = {
    "vqa": Size("open_question", 400_000, 800_000),
    "gqa": Size("open_question", 200_000, 600_000),
    "caption": Size("caption", 900_000, 18_000_000),
    "chat": Size("conversation", 50_000, 20_000_000),
}
STRATEGIES = [
    {"strategy": "tuned"},
    {"strategy": "per-dataset"},
    {"strategy": "per-task"},
    {"strategy": "per-sample"},
    {"strategy": "size"},
    {"strategy": "temperature", "temperature": 3},
    {"strategy": "per-sample", "unit": "supervised_tokens", "cap": 700},
    {"strategy": "tuned", "unit": "supervised_tokens"},
]


def manifests(sizes: dict[str, Size]) -> dict[str, dict]:
    return {
        name: {"task": size.task, "num_examples": size.examples, "num_supervised": size.supervised}
        for name, size in sizes.items()
    }


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({"strategy": "tuned"}, {"vqa": 0.4, "gqa": 0.3, "caption": 0.2, "chat": 0.1}),
        ({"strategy": "per-dataset"}, dict.fromkeys(SIZES, 1 / 4)),
        # Three tasks; the share of the task with two datasets is halved.
        ({"strategy": "per-task"}, {"vqa": 1 / 6, "gqa": 1 / 6, "caption": 1 / 3, "chat": 1 / 3}),
        # 100k, 100k, 100k, 50k
        ({"strategy": "per-sample"}, {"vqa": 2 / 7, "gqa": 2 / 7, "caption": 2 / 7, "chat": 1 / 7}),
        ({"strategy": "per-sample", "cap": 300_000}, {"vqa": 6 / 17, "gqa": 4 / 17, "caption": 6 / 17, "chat": 1 / 17}),
        ({"strategy": "size"}, {"vqa": 40 / 155, "gqa": 20 / 155, "caption": 90 / 155, "chat": 5 / 155}),
        # Roots of 40, 20, 90, 5
        (
            {"strategy": "temperature", "temperature": 2},
            {"vqa": 6.32456 / 22.5197, "gqa": 4.47214 / 22.5197, "caption": 9.4868 / 22.5197, "chat": 2.2361 / 22.5197},
        ),
    ],
)  # fmt: skip
def test_shares_equal_hand_computed_values(chosen, expected):
    weights = {"vqa": 4, "gqa": 3, "caption": 2, "chat": 1} if chosen["strategy"] == "tuned" else None
    got = shares(Balance(**chosen), weights, SIZES, 1000)
    assert got.wanted == pytest.approx(expected, abs=1e-5)
    assert got.examples == got.wanted
    assert not got.capped


def test_token_shares_are_converted_to_example_shares_by_the_mean():
    got = shares(Balance(strategy="per-dataset", unit="supervised_tokens"), None, SIZES, 1000)
    # Tokens per example: 2, 3, 20, 400. With equal token shares, examples are in the ratio 1/2 : 1/3 : 1/20 : 1/400.
    parts = {"vqa": 600, "gqa": 400, "caption": 60, "chat": 3}
    assert got.wanted == dict.fromkeys(SIZES, 0.25)
    assert got.examples == pytest.approx({name: part / 1063 for name, part in parts.items()})
    by_size = shares(Balance(strategy="size", unit="supervised_tokens"), None, SIZES, 1000)
    assert by_size.wanted == pytest.approx({"vqa": 8 / 394, "gqa": 6 / 394, "caption": 180 / 394, "chat": 200 / 394})
    everything = sum(size.examples for size in SIZES.values())
    assert by_size.examples == pytest.approx({name: size.examples / everything for name, size in SIZES.items()})


def test_excess_over_a_limit_is_redistributed_until_no_dataset_exceeds_its_limit():
    wanted = {"a": 0.4, "b": 0.3, "c": 0.2, "d": 0.1}
    # Of 100 samples, a may give 10. Its excess of 30 is split 3 : 2 : 1, so b would give 45 and is capped at 40.
    # Of the remaining 50, c gets two thirds and d one third.
    got, capped = cap_shares(wanted, {"a": 10, "b": 40}, 100)
    assert got == pytest.approx({"a": 0.1, "b": 0.4, "c": 1 / 3, "d": 1 / 6})
    assert capped == {"a", "b"}


def test_limits_by_name():
    balance = Balance(strategy="per-dataset", max_epochs={"chat": 0.5, "gqa": 100})
    got = shares(balance, None, SIZES, 200_000)
    assert got.max_samples == {"chat": 25_000, "gqa": 20_000_000}
    assert got.capped == {"chat"}
    assert got.examples["chat"] == 0.125


def test_too_few_samples_under_the_limits_is_an_error_with_both_numbers():
    with pytest.raises(BalanceError, match=r"allows only 3,100,000 samples, but 4,000,000 are wanted"):
        shares(Balance(strategy="size", max_epochs=2), None, SIZES, 4_000_000)


def test_a_dataset_without_an_example_is_named():
    sizes = {**SIZES, "gqa": Size("open_question", 0, 0)}
    with pytest.raises(BalanceError, match="gqa: in the mixture, but has no examples"):
        shares(Balance(strategy="per-dataset"), None, sizes, 10)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"strategy": "size", "cap": 5}, "`cap` is only allowed with the strategy per-sample"),
        ({"strategy": "per-sample", "unit": "supervised_tokens"}, "needs a `cap` if the unit is supervised_tokens"),
        ({"strategy": "temperature"}, "`temperature` is required with the strategy temperature"),
        ({"strategy": "size", "temperature": 2}, "not allowed with any other"),
        ({"strategy": "size", "max_epochs": 0}, "max_epochs"),
        ({"strategy": "largest"}, "strategy"),
    ],
)
def test_parameters_that_do_not_fit_the_strategy_are_refused(chosen, message):
    with pytest.raises(ValidationError, match=message):
        Balance(**chosen)


names = st.sampled_from("abcdefgh")
some_sizes = st.dictionaries(
    names,
    st.builds(Size, st.sampled_from(["t1", "t2", "t3"]), st.integers(1, 3000), st.integers(1, 10**6)),
    min_size=1,
)


@settings(max_examples=200, deadline=None)
@given(some_sizes, st.sampled_from(STRATEGIES), st.data())
def test_shares_sum_to_one_limits_hold_and_unlimited_datasets_keep_their_ratios(sizes, chosen, data):
    weights = {name: data.draw(st.floats(0.01, 1)) for name in sizes} if chosen["strategy"] == "tuned" else None
    max_epochs = data.draw(
        st.none() | st.floats(0.5, 5) | st.dictionaries(st.sampled_from(sorted(sizes)), st.floats(0.5, 5))
    )
    num_samples = data.draw(st.integers(1, 5000))
    balance = Balance(**chosen, max_epochs=max_epochs)
    try:
        got = shares(balance, weights, sizes, num_samples)
    except BalanceError:
        max_samples = max_epochs if isinstance(max_epochs, dict) else dict.fromkeys(sizes, max_epochs)
        assert set(max_samples) == set(sizes)
        assert sum(int(max_samples[name] * size.examples + 1e-6) for name, size in sizes.items()) < num_samples
        return
    assert sum(got.wanted.values()) == pytest.approx(1)
    assert sum(got.examples.values()) == pytest.approx(1)
    for name, most in got.max_samples.items():
        assert got.examples[name] * num_samples <= most + 1e-6
    before = shares(Balance(**chosen), weights, sizes, num_samples).examples
    free = sorted(set(sizes) - got.capped)
    for one, other in itertools.pairwise(free):
        assert got.examples[one] * before[other] == pytest.approx(got.examples[other] * before[one])
    for name in free:
        assert got.examples[name] >= before[name] - 1e-9


@settings(max_examples=6, deadline=None, phases=[Phase.generate])  # each mixture takes half a second
@given(some_sizes, st.sampled_from([1, 1.5, 2, 7]), st.floats(0.3, 1), st.sampled_from([1, 100]))
def test_limits_hold_for_the_samples_of_the_mixture(sizes, epochs, part, factor):
    sizes = {name: Size(size.task, size.examples * factor, size.supervised) for name, size in sizes.items()}
    total = sum(int(epochs * size.examples) for size in sizes.values())
    num_samples = max(1, int(total * part))
    try:
        got, mixture = mix(
            Balance(strategy="per-dataset", max_epochs=epochs), None, manifests(sizes), num_samples, seed=0
        )
    except MixtureError:  # the limits leave almost no slack for quotas in a long order, or a share is too small
        assume(False)
    counts = mixture.counts(num_samples)
    assert sum(counts.values()) == num_samples
    for name, size in sizes.items():
        assert counts[name] <= int(epochs * size.examples) + 1
        assert abs(counts[name] - got.examples[name] * num_samples) <= 1 + len(sizes) * num_samples / PERIOD


def test_one_epoch_in_total_is_one_epoch_of_each_dataset():
    sizes = {"a": Size("t", 311, 1), "b": Size("t", 7, 1), "c": Size("t", 5000, 1)}
    _, mixture = mix(Balance(strategy="per-dataset", max_epochs=1), None, manifests(sizes), 5318, seed=0)
    counts = mixture.counts(5318)
    assert all(abs(counts[name] - size.examples) <= 1 for name, size in sizes.items())


def test_limits_too_tight_for_a_long_order_are_an_error():
    sizes = {"a": Size("t", 1_000_003, 1), "b": Size("t", 77_777, 1)}
    with pytest.raises(MixtureError, match=r"allow 1,077,\d{3} samples .* 1/65536 .* 1,077,780 are wanted"):
        mix(Balance(strategy="size", max_epochs=1), None, manifests(sizes), 1_077_780, seed=0)


@pytest.mark.parametrize("chosen", [{"strategy": "per-dataset"}, {"strategy": "temperature", "temperature": 2}])
def test_the_tokens_of_the_mixture_have_the_wanted_shares(chosen):
    random = np.random.default_rng(0)
    lengths = {
        "short": random.integers(1, 4, 4000),
        "captions": random.poisson(12, 9000) + 1,
        "long": random.lognormal(5, 0.8, 2500).astype(int) + 1,
    }
    sizes = {name: Size("t", len(each), int(each.sum())) for name, each in lengths.items()}
    num_samples = 150_000
    got, mixture = mix(Balance(**chosen, unit="supervised_tokens"), None, manifests(sizes), num_samples, seed=4)
    dataset, example = mixture.locate(np.arange(num_samples))
    tokens = {name: lengths[name][example[dataset == d]].sum() for d, name in enumerate(mixture.names)}
    for name, wanted in got.wanted.items():
        assert tokens[name] / sum(tokens.values()) == pytest.approx(wanted, abs=0.01)
    prefix = np.cumsum(dataset[:, None] == np.arange(3), axis=0)
    expected = np.arange(1, num_samples + 1)[:, None] * np.array(mixture.quotas) / PERIOD
    assert np.abs(prefix - expected).max() < 1
