"""Tests that the packing plan is complete, respects its limits, fills its packs and is deterministic."""

import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.mixture.order import make_mixture
from pipelines.packing.plan import Lengths, Packing, PackingError, PackingPlan, cached_plan, make_plan
from pipelines.schema import LENGTHS

M = 9


@pytest.fixture(scope="session")
def write(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Lengths]:
    def write(tokens: np.ndarray, images: np.ndarray, group: int = 1000) -> Lengths:
        path = tmp_path_factory.mktemp("lengths") / "lengths.parquet"
        columns = [pa.array(tokens, pa.int32()), pa.array(images, pa.int16())]
        pq.write_table(pa.table(columns, schema=LENGTHS), path, row_group_size=group)
        return Lengths(path)

    return write


def mixed(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Short questions with an image, and longer texts without."""
    random = np.random.default_rng(seed)
    images = (random.random(count) < 0.7).astype(np.int64)
    return np.where(images, random.integers(20, 60, count), random.integers(30, 400, count)), images


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    count=st.integers(0, 300),
    most=st.integers(40, 200),
    window=st.integers(1, 90),
    max_images=st.none() | st.integers(2, 6),
    threads=st.integers(1, 3),
    group=st.integers(1, 400),
)
def test_every_sample_is_in_exactly_one_pack_and_packs_respect_the_limits(
    write: Callable, seed: int, count: int, most: int, window: int, max_images: int | None, threads: int, group: int
) -> None:
    random = np.random.default_rng(seed)
    images = random.integers(0, 3, count)
    tokens = images + random.integers(1, most - 2 * M + 1, count)
    positions = tokens + images * (M - 1)
    lengths = write(tokens, images, group)
    packing = Packing(max_tokens=most, window=window, max_images=max_images)
    plan = make_plan(lengths, packing, M, threads)
    packs = plan.packs(0, plan.num_packs)
    assert sorted(i for pack in packs for i in pack.samples.tolist()) == list(range(count))
    for pack in packs:
        assert pack.tokens == positions[pack.samples].sum() <= most
        assert images[pack.samples].sum() <= (max_images or count * 2)
        assert pack.window == pack.samples[0] // window * window
        assert pack.window <= pack.samples[0] <= pack.samples[-1] < pack.window + window
        assert (np.diff(pack.samples) > 0).all()
    assert [pack.window for pack in packs] == sorted(pack.window for pack in packs)
    used = positions.sum() / max(1, len(packs) * most)
    assert plan.used == pytest.approx(used)


def test_any_range_of_packs_equals_that_range_of_the_complete_plan(write: Callable) -> None:
    lengths = write(*mixed(3000), group=700)
    plan = make_plan(lengths, Packing(max_tokens=512, window=256), M)
    complete = [pack.samples.tolist() for pack in plan.packs(0, plan.num_packs)]
    random = np.random.default_rng(3)
    for _ in range(40):
        first, stop = sorted(random.integers(0, plan.num_packs + 1, 2).tolist())
        fresh = PackingPlan(Lengths(lengths.path), plan.packing, M, plan.starts)
        assert [pack.samples.tolist() for pack in fresh.packs(first, stop)] == complete[first:stop]
    with pytest.raises(IndexError, match=f"the plan has {plan.num_packs}"):
        plan.packs(0, plan.num_packs + 1)


def test_without_packing_every_sample_is_its_own_pack(write: Callable) -> None:
    tokens, images = mixed(50)
    plan = make_plan(write(tokens, images), None, M)
    assert plan.num_packs == 50
    assert [(p.samples.tolist(), p.tokens) for p in plan.packs(10, 12)] == [
        ([i], tokens[i] + images[i] * (M - 1)) for i in (10, 11)
    ]


def test_packs_are_nearly_and_equally_full(write: Callable) -> None:
    plan = make_plan(write(*mixed(8192)), Packing(max_tokens=1024), M)
    assert plan.used > 0.98
    tokens = np.array([pack.tokens for pack in plan.packs(0, plan.num_packs)])
    assert np.quantile(tokens, 0.05) > 0.97 * 1024  # the last pack of a window may be less full


def test_packs_are_filled_up_to_the_limit_on_images(write: Callable) -> None:
    """If the limit on images binds first, no pack has room for another sample."""
    tokens, images = np.full(64, 10), np.ones(64, int)
    plan = make_plan(write(tokens, images), Packing(max_tokens=10_000, max_images=5), M)
    assert sorted(len(pack.samples) for pack in plan.packs(0, plan.num_packs))[1:] == [5] * 12


def test_quotas_are_exact_at_window_ends_and_bounded_inside(write: Callable) -> None:
    """Compares each dataset of the mixture with its share after every pack."""
    shares = {"a": 0.6, "b": 0.3, "c": 0.1}
    mixture = make_mixture(shares, dict.fromkeys(shares, 500), seed=4)
    count, window = 6000, 500
    dataset, _ = mixture.locate(np.arange(count))
    # The worst case for a plan based on lengths: each dataset has a different length.
    plan = make_plan(
        write(np.array([30, 110, 400])[dataset], np.zeros(count)), Packing(max_tokens=512, window=window), M
    )
    seen, samples = np.zeros(3), 0
    for pack in plan.packs(0, plan.num_packs):
        seen += np.bincount(dataset[pack.samples], minlength=3)
        samples += len(pack.samples)
        for d, share in enumerate(np.array(mixture.quotas) / sum(mixture.quotas)):
            bound = window * share * (1 - share) + 2 if samples % window else 1
            assert abs(seen[d] - share * samples) <= bound
    assert samples == count


def test_a_sample_longer_than_a_pack_is_named(write: Callable) -> None:
    lengths = write(np.array([5, 40, 60, 50]), np.array([0, 1, 2, 0]))
    message = r"sample 2 has 76 positions, but packing\.max_tokens is 60: raise it, or lower"
    with pytest.raises(PackingError, match=message):
        make_plan(lengths, Packing(max_tokens=60), M)
    with pytest.raises(PackingError, match=r"sample 2 has 2 images, but packing\.max_images is 1"):
        make_plan(lengths, Packing(max_tokens=80, max_images=1), M)


def test_different_plans_have_different_fingerprints(write: Callable) -> None:
    lengths, other = write(*mixed(100)), write(*mixed(100, seed=1))
    packing = Packing(max_tokens=512)
    plans = [
        PackingPlan(lengths, packing, M),
        PackingPlan(lengths, packing, M + 1),
        PackingPlan(lengths, Packing(max_tokens=512, window=64), M),
        PackingPlan(lengths, Packing(max_tokens=600), M),
        PackingPlan(lengths, None, M),
        PackingPlan(other, packing, M),
    ]
    assert len({plan.fingerprint for plan in plans}) == len(plans)


def test_lengths_that_cannot_be_read_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "lengths.parquet").write_bytes(b"PAR1")
    with pytest.raises(PackingError, match=r"lengths\.parquet cannot be read"):
        Lengths(tmp_path / "lengths.parquet")


@pytest.mark.parametrize(("tokens", "images"), [(0, 0), (-3, 0), (5, -1)])
def test_an_impossible_length_is_named(write: Callable, tokens: int, images: int) -> None:
    """The compiled code would index out of bounds."""
    lengths = write(np.array([5, tokens, 7]), np.array([0, images, 1]))
    with pytest.raises(PackingError, match=r"sample 1 has .* which is impossible: build the shards again"):
        make_plan(lengths, Packing(max_tokens=60), M)


@pytest.mark.parametrize("columns", [["num_tokens"], ["num_images", "num_tokens"], None])
def test_lengths_with_other_columns_are_an_error(tmp_path: Path, columns: list[str] | None) -> None:
    path = tmp_path / "lengths.parquet"
    table = pa.table([pa.array([5, 6], pa.int32()), pa.array([0, 1], pa.int16())], schema=LENGTHS)
    without = pa.table({"num_tokens": pa.array([5, None], pa.int32()), "num_images": pa.array([0, 1], pa.int16())})
    pq.write_table(table.select(columns) if columns else without, path)
    with pytest.raises(PackingError, match=r"lengths\.parquet does not have the schema of a lengths file: build"):
        Lengths(path)


def test_unused_capacity_takes_no_memory(write: Callable) -> None:
    """A bit set of `max_tokens` bits for every length in the window would take 1 GiB."""
    tokens = np.arange(1, 513)
    lengths = write(tokens, np.zeros(512))
    make_plan(lengths, Packing(max_tokens=512), M)  # compile before setting the limit
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (512 << 20), before[1]))
    try:
        plan = make_plan(lengths, Packing(max_tokens=(1 << 24) - 1), M)
        assert [pack.tokens for pack in plan.packs(0, plan.num_packs)] == [tokens.sum()]
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_a_damaged_saved_plan_is_named_and_made_again(write: Callable, tmp_path: Path, caplog) -> None:
    lengths, packing = write(*mixed(500)), Packing(max_tokens=512, window=100)
    cached_plan(tmp_path, lengths, packing, M)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    for damaged in (content[:-9], content[:200].replace(b"NUMPY", b"NUMPI") + content[200:], b""):
        path.write_bytes(damaged)
        caplog.clear()
        cached_plan(tmp_path, lengths, packing, M)
        assert f"{path} is damaged: " in caplog.text and "the plan is rebuilt" in caplog.text
        assert path.stat().st_size == len(content)


def test_a_saved_plan_is_reused_and_a_changed_one_is_rebuilt(write: Callable, tmp_path: Path) -> None:
    lengths = write(*mixed(500))
    packing = Packing(max_tokens=512, window=100)
    made = cached_plan(tmp_path, lengths, packing, M)
    (path,) = tmp_path.iterdir()
    written = path.stat().st_mtime_ns
    kept = cached_plan(tmp_path, lengths, packing, M)
    assert path.stat().st_mtime_ns == written
    assert (kept.fingerprint, kept.used, kept.num_packs) == (made.fingerprint, made.used, made.num_packs)
    assert [p.samples.tolist() for p in kept.packs(0, 9)] == [p.samples.tolist() for p in made.packs(0, 9)]
    cached_plan(tmp_path, lengths, packing, M + 1)
    assert len(list(tmp_path.iterdir())) == 2
    cached_plan(tmp_path, lengths, packing, M + 2, keep=False)
    assert len(list(tmp_path.iterdir())) == 2
