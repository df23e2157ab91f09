"""Tests of building shards on a full disk, concurrently, after a kill, and over damaged files."""

import multiprocessing
import os
import resource
import subprocess
from pathlib import Path

import pytest
from support.shard_world import with_settings

from pipelines.core.errors import ShardError
from pipelines.core.integrity import write_manifest
from pipelines.core.store import Store, read_manifest
from pipelines.jobs.shards import build_shards
from pipelines.shards.verify import verify


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def shards_in(store: Path) -> list[str]:
    return [path.name for path in store.glob("shards/*/*")]


@pytest.mark.parametrize("damage", ["bit", "truncated", "missing", "swapped", "lengths"])
def test_a_build_does_not_reuse_damaged_shards(shards, world, tmp_path, damage):
    store = Store(tmp_path / "store")
    directory = build_shards(store, **world)
    assert directory == shards
    first, second = (directory / facts["file"] for facts in read_manifest(directory)["shards"][:2])
    expected = files_of(directory)
    path = directory / "lengths.parquet" if damage == "lengths" else first
    content = bytearray(path.read_bytes())
    if damage in ("bit", "lengths"):
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "truncated":
        path.write_bytes(content[:-1])
    elif damage == "missing":
        path.unlink()
    else:
        other = second.read_bytes()
        second.write_bytes(content)
        first.write_bytes(other)
    log: list[str] = []
    assert build_shards(Store(tmp_path / "store", log=log.append), **world) == directory
    assert any(f"{path} is" in line and "rebuilt" in line for line in log)
    assert files_of(directory) == expected


def test_a_run_reads_unchanged_files_once(shards, world, tmp_path, monkeypatch):
    store = Store(tmp_path / "store")
    directory = build_shards(store, **world)
    assert directory == shards

    def refuse(path):
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr("pipelines.core.integrity.file_sha256", refuse)
    assert build_shards(store, **world) == directory


def test_shards_of_a_different_format_are_not_reused(shards, world, tmp_path):
    store = Store(tmp_path / "store")
    directory = build_shards(store, **world)
    assert directory == shards
    manifest = read_manifest(directory)
    write_manifest(directory, {**manifest, "format": 0})
    with pytest.raises(ShardError, match="shards of format 0, but this version reads format 1: build them again"):
        build_shards(store, **world)


def _build(world: dict, store: Path, most: int | None, out: Path) -> None:
    """Builds in a separate process. most: maximum file size in bytes that it may write."""
    if most is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    try:
        out.write_text(str(build_shards(Store(store), **world, log=lambda line: None)))
    except Exception as error:
        out.write_text(f"{type(error).__name__}: {error}")


def _process(world: dict, *rest: object) -> multiprocessing.Process:
    given = {name: value for name, value in world.items() if name != "log"}
    return multiprocessing.get_context("spawn").Process(target=_build, args=(given, *rest))


def test_a_file_that_exceeds_the_size_limit_is_named_and_left_unfinished(world, tmp_path):
    world = with_settings(world, shard_bytes=1 << 20)
    out = tmp_path / "out"
    process = _process(world, tmp_path / "store", 60_000, out)
    process.start()
    process.join(120)
    assert "parquet cannot be written: the file is too large. Free space or raise the limit" in out.read_text()
    assert not [name for name in shards_in(tmp_path / "store") if "parquet" in name or "manifest" in name]
    # Without the limit, the same build succeeds.
    assert verify(str(build_shards(Store(tmp_path / "store"), **world)), lambda line: None) == []


def test_a_full_disk_is_named_and_finished_shards_are_kept(world, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small tmpfs: {mounted.stderr.strip()}")
    try:
        with pytest.raises(ShardError, match=r"cannot be written: the disk is full\. Free space or raise the limit"):
            build_shards(Store(disk / "store"), **world)
        finished = {path.name[:11] for path in disk.glob("store/shards/*/shard-*.json")}
        paths = [path for path in disk.glob("store/shards/*/shard-*.parquet") if path.name[:11] in finished]
        kept = {path.name: path.stat().st_mtime_ns for path in paths}
        assert kept and not list(disk.glob("store/shards/*/manifest.json"))
        assert not list(disk.rglob("*.partial"))
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        directory = build_shards(Store(disk / "store"), **world)
        for name, time in kept.items():
            assert (directory / name).stat().st_mtime_ns == time
        assert verify(str(directory), lambda line: None) == []
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)  # lazily, because a failed write may keep a file open


def test_two_concurrent_builds_write_one_complete_directory(shards, world, tmp_path):
    expected = shards
    outs = [tmp_path / f"out{number}" for number in range(2)]
    processes = [_process(world, tmp_path / "other", None, out) for out in outs]
    for process in processes:
        process.start()
    manifest = tmp_path / "other/shards" / expected.name / "manifest.json"
    while any(process.is_alive() for process in processes):
        if manifest.is_file():  # once it exists, everything must be complete
            assert verify(str(manifest.parent), lambda line: None) == []
            break
    for process in processes:
        process.join(120)
    assert {out.read_text() for out in outs} == {str(manifest.parent)}
    assert files_of(manifest.parent) == files_of(expected)


def test_a_killed_build_leaves_no_manifest_and_the_next_build_resumes(shards, world, tmp_path):
    expected = shards
    directory = tmp_path / "other/shards" / expected.name
    process = _process(world, tmp_path / "other", None, tmp_path / "out")
    process.start()
    while not list(directory.glob("shard-*.json")):
        assert process.is_alive()
    os.kill(process.pid, 9)
    process.join()
    if not (directory / "manifest.json").is_file():
        assert files_of(build_shards(Store(tmp_path / "other"), **world)) == files_of(expected)
