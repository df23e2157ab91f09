"""Sealed manifests, and that damage to any file of an entry is found, named and repaired."""

import json
import shutil

import pytest
from support.damage import files_of, flip

from pipelines.core.errors import StoreError
from pipelines.core.integrity import DamagedError, check, faults, listed, read_manifest, seal, unseal, write_manifest
from pipelines.core.store import FileDigests, NotBuilt, Store

KEY = {"version": 1, "name": "é"}


def make(out):
    (out / "sub").mkdir(exist_ok=True)
    (out / "a.arrow").write_bytes(b"a" * 1000)
    (out / "sub" / "b.json").write_text('{"b": 1}')
    return {"rows": 2, "note": "naïve"}


def test_every_bit_of_sealed_text_counts():
    text = seal({"key": {"a": [1, 2]}, "text": "é"}).encode()
    assert {**json.loads(text), "checksum": ""} == {"key": {"a": [1, 2]}, "text": "é", "checksum": ""}
    assert unseal(text, "x") == json.loads(text)
    for bit in range(8 * len(text)):
        changed = bytearray(text)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DamagedError, match=r"^x (is damaged|has no checksum)"):
            unseal(bytes(changed), "x")
    for length in range(len(text)):
        with pytest.raises(DamagedError, match=r"^x is damaged"):
            unseal(text[:length], "x")


def test_sealing_what_was_read_gives_the_same_text():
    text = seal({"a": 1, "b": {}})
    assert seal(unseal(text.encode(), "x")) == text == seal({"checksum": "old", "a": 1, "b": {}})


def test_a_manifest_of_an_earlier_version_is_told_apart_from_damage(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"key": KEY}))
    with pytest.raises(DamagedError, match="has no checksum, so it is damaged or an earlier version wrote it: build"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["a.arrow", "sub/b.json", "manifest.json"])
@pytest.mark.parametrize("seed", range(3))
def test_a_flipped_bit_in_any_file_is_found_named_and_repaired(tmp_path, name, seed):
    log: list[str] = []
    directory = Store(tmp_path).produce("stage", KEY, make)
    expected = files_of(directory)
    flip(directory / name, seed)
    [fault] = faults(directory)
    assert fault.path == directory / name
    with pytest.raises(DamagedError, match=rf"{name} .*: build its recipe again, which rebuilds it"):
        check(directory)
    with pytest.raises(NotBuilt):
        Store(tmp_path, read_only=True, log=log.append).produce("stage", KEY, make)
    assert log == [f"{fault}: the next build rebuilds it"]
    assert Store(tmp_path, log=log.append).produce("stage", KEY, make) == directory
    assert log[1:] == [f"{fault}: it is rebuilt"]
    assert files_of(directory) == expected


def test_only_damaged_files_are_removed_before_an_entry_is_made_again(tmp_path):
    directory = Store(tmp_path).produce("stage", KEY, make)
    (directory / "a.arrow").write_bytes(b"a" * 999)
    (directory / "sub/b.json").touch()
    there: list[str] = []

    def again(out):
        there.extend(sorted(files_of(out)))
        return make(out)

    Store(tmp_path, log=print).produce("stage", KEY, again)
    assert there == ["sub/b.json"]


def test_history_is_set_aside_and_checkpoints_are_left_to_their_readers(tmp_path):
    def train(out):
        checkpoint = out / "work/checkpoints/step-1"
        checkpoint.mkdir(parents=True, exist_ok=True)
        if not (out / "work/metrics.jsonl").exists() and not (out / "model").exists():
            (out / "work/metrics.jsonl").write_text("{}\n")
        (out / "model").write_text("weights")
        (checkpoint / "tensors").write_text("state")
        write_manifest(checkpoint, {"step": 1})
        return {}

    log: list[str] = []
    directory = Store(tmp_path).produce("models", KEY, train, "work")
    assert set(read_manifest(directory)["contents"]) == {"model", "work/metrics.jsonl"}
    flip(directory / "work/checkpoints/step-1/tensors")
    flip(directory / "work/metrics.jsonl")
    assert Store(tmp_path, log=log.append).produce("models", KEY, train, "work") == directory
    assert len(log) == 2 and "metrics.jsonl is damaged" in log[0] and "is set aside as .metrics.jsonl.damaged" in log[1]
    assert (directory / "work/.metrics.jsonl.damaged").is_file() and not (directory / "work/metrics.jsonl").exists()
    assert [fault.path.name for fault in faults(directory / "work/checkpoints/step-1")] == []  # written again


def test_an_entry_under_the_name_of_another_is_not_used(tmp_path):
    store, log = Store(tmp_path), []
    one = store.produce("stage", KEY, make)
    shutil.copytree(one, store.path("stage", {"version": 2}))
    built = Store(tmp_path, log=log.append).produce("stage", {"version": 2}, lambda out: {"rows": 5})
    assert read_manifest(built)["rows"] == 5 and "manifest.json belongs to another entry" in log[0]


def test_damaged_entries_are_not_offered_for_reuse(tmp_path):
    log: list[str] = []
    store = Store(tmp_path, log=log.append)
    one, two = (store.produce("stage", {"n": n}, make) for n in (1, 2))
    flip(one / "a.arrow")
    flip(two / "manifest.json")
    assert [each for each, _ in Store(tmp_path, log=log.append).entries("stage")] == [one]
    assert list(Store(tmp_path, log=log.append).entries("stage", "*.arrow")) == []
    assert {line.split(" ")[0] for line in log} == {str(one / "a.arrow"), str(two / "manifest.json")}


def test_files_that_the_manifest_does_not_list_are_not_read(tmp_path):
    directory = Store(tmp_path).produce("stage", KEY, make)
    (directory / "z.arrow").write_text("from elsewhere")
    assert listed(directory, "*.arrow") == [directory / "a.arrow"]


@pytest.mark.parametrize("seed", range(5))
def test_a_damaged_cache_of_digests_is_named_and_the_files_are_read_again(tmp_path, seed):
    file, log = tmp_path / "file", []
    file.write_text("content")
    digest = FileDigests(Store(tmp_path / "store")).digest(file)
    flip(tmp_path / "store/digests.json", seed)
    assert FileDigests(Store(tmp_path / "store", log=log.append)).digest(file) == digest
    assert "digests.json" in log[0] and log[0].endswith("all files are read again")
    assert FileDigests(Store(tmp_path / "store", log=pytest.fail)).digest(file) == digest


def test_a_file_exchanged_with_equal_size_and_time_has_another_digest(tmp_path):
    file = tmp_path / "file"
    file.write_text("content")
    digest = FileDigests(Store(tmp_path / "store")).digest(file)
    flip(file)
    assert FileDigests(Store(tmp_path / "store")).digest(file) != digest


def test_a_full_disk_is_named_whatever_the_stage_raises(tmp_path):
    def of_beam(out):
        raise RuntimeError(f"OSError: [Errno 28] No space left on device: '{out}/spill/a0.arrow' [while running 'x']")

    def of_tokenizers(out):
        raise Exception("No space left on device (os error 28)")  # what `tokenizers` raises has no class of its own

    with pytest.raises(StoreError, match=r"spill/a0.arrow cannot be written: the disk is full\. Free space"):
        Store(tmp_path).produce("examples", KEY, of_beam)
    with pytest.raises(StoreError, match=r"tokenizers/\w+ cannot be written: the disk is full\. Free space"):
        Store(tmp_path).produce("tokenizers", KEY, of_tokenizers)


def test_under_a_damaged_manifest_only_what_has_its_own_checksums_is_kept(tmp_path):
    there: list[str] = []

    def train(out):
        there.extend(sorted(files_of(out)))
        for name in ("job.json", "output/model", "work/metrics.jsonl"):
            (out / name).parent.mkdir(exist_ok=True)
            (out / name).write_text(name)
        write_manifest(out / "output", {})
        return {}

    directory = Store(tmp_path).produce("models", KEY, train, "work")
    flip(directory / "manifest.json")
    flip(directory / "job.json")
    expected = files_of(Store(tmp_path, log=print).produce("models", KEY, train, "work"))
    assert there == ["output/manifest.json", "output/model", "work/metrics.jsonl"]
    assert expected["job.json"] == b"job.json" and faults(directory) == []
