"""The content-addressed store and the digest cache."""

import hashlib
import multiprocessing
import time
from pathlib import Path

import pytest

from pipelines.core.files import write_atomic
from pipelines.core.store import BIG_FILE, FileDigests, NotBuilt, Store, digest_of, fingerprint, read_manifest

KEY = {"version": 1, "weights": {"a": 0.5}}


def test_a_complete_output_is_built_once(tmp_path):
    calls = []

    def make(out):
        calls.append(out)
        (out / "data").write_text("x")
        return {"rows": 1}

    store = Store(tmp_path)
    first, second = store.produce("stage", KEY, make), store.produce("stage", KEY, make)
    assert first == second and len(calls) == 1
    contents = {"data": [1, hashlib.sha256(b"x").hexdigest()]}
    manifest = {name: value for name, value in read_manifest(first).items() if name != "checksum"}
    assert manifest == {"stage": "stage", "key": KEY, "rows": 1, "contents": contents}


def test_fingerprints_depend_on_the_key_but_not_on_its_order():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2}) != fingerprint({"a": "2"})
    with pytest.raises(TypeError):
        fingerprint({"a": object()})


def test_a_failed_build_is_not_mistaken_for_complete(tmp_path):
    store = Store(tmp_path)

    def fail(out):
        (out / "half").write_text("x")
        (out / ".whole.123.partial").write_text("x")  # a killed write_atomic leaves this file
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        store.produce("stage", KEY, fail)
    assert not store.has("stage", KEY)
    with pytest.raises(FileNotFoundError, match="never finished"):
        read_manifest(store.path("stage", KEY))
    seen = []
    store.produce("stage", KEY, lambda out: seen.extend(p.name for p in out.iterdir()) or {})
    assert seen == ["half"], "the next build finds the finished files but no partial ones"


def _slow_producer(root, log):
    def make(out):
        with Path(log).open("a") as file:
            file.write("begin\n")
        time.sleep(0.3)
        return {}

    Store(root).produce("stage", KEY, make)


def test_two_processes_build_an_output_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    log = tmp_path / "log"
    builders = [context.Process(target=_slow_producer, args=(tmp_path / "store", str(log))) for _ in range(2)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert log.read_text() == "begin\n"


def test_write_atomic_replaces_the_file(tmp_path):
    path = tmp_path / "f"
    write_atomic(path, "one")
    write_atomic(path, b"two")
    assert path.read_text() == "two" and [p.name for p in tmp_path.iterdir()] == ["f"]


def test_digests_follow_the_content(tmp_path):
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_text("one")
    other.write_text("one")
    digests = FileDigests(Store(tmp_path / "store"))
    before = digests.digest(path)
    assert digests.digests([path, other]) == [before, before]
    path.write_text("other")
    assert FileDigests(Store(tmp_path / "store")).digest(path) != before
    (tmp_path / "store" / "digests.json").write_text("{half")
    assert digests.digest(other) == before


def test_digest_of_distinguishes_items():
    assert digest_of(["ab", "c"]) != digest_of(["a", "bc"])
    assert digest_of([("a", 1)]) == digest_of([["a", 1]])


def test_a_read_only_store_writes_nothing(tmp_path):
    with pytest.raises(NotBuilt):
        Store(tmp_path / "none", read_only=True).produce("stage", KEY, lambda out: {})
    file = tmp_path / "file"
    file.write_text("content")
    digest = FileDigests(Store(tmp_path / "none", read_only=True)).digest(file)
    assert not (tmp_path / "none").exists()
    store = Store(tmp_path / "store")
    built = store.produce("stage", KEY, lambda out: {})
    assert Store(tmp_path / "store", read_only=True).produce("stage", KEY, lambda out: {}) == built
    assert FileDigests(store).digest(file) == digest


def test_a_read_only_store_does_not_hash_big_files(tmp_path):
    file = tmp_path / "file"
    with file.open("wb") as big:
        big.truncate(BIG_FILE + 1)
    read_only = FileDigests(Store(tmp_path / "store", read_only=True))
    with pytest.raises(NotBuilt, match="has not been read by a build yet"):
        read_only.digest(file)
    digest = FileDigests(Store(tmp_path / "store")).digest(file)
    assert read_only.digest(file) == digest
