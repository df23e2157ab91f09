import multiprocessing
import time
from pathlib import Path

import pytest

from pipelines.store import BIG_FILE, FileDigests, NotBuilt, Store, digest_of, fingerprint, read_manifest, write_atomic

KEY = {"version": 1, "weights": {"a": 0.5}}


def test_a_whole_output_is_made_once(tmp_path):
    calls = []

    def make(out):
        calls.append(out)
        (out / "data").write_text("x")
        return {"rows": 1}

    store = Store(tmp_path)
    first, second = store.produce("stage", KEY, make), store.produce("stage", KEY, make)
    assert first == second and len(calls) == 1
    assert read_manifest(first) == {"stage": "stage", "key": KEY, "rows": 1}


def test_another_key_is_another_output_and_the_order_of_keys_is_none():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2}) != fingerprint({"a": "2"})
    with pytest.raises(TypeError):
        fingerprint({"a": object()})


def test_a_failed_maker_leaves_nothing_that_is_taken_for_whole(tmp_path):
    store = Store(tmp_path)

    def fail(out):
        (out / "half").write_text("x")
        (out / ".whole.123.partial").write_text("x")  # as write_atomic leaves it when it is killed
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        store.produce("stage", KEY, fail)
    assert not store.has("stage", KEY)
    with pytest.raises(FileNotFoundError, match="never finished"):
        read_manifest(store.path("stage", KEY))
    seen = []
    store.produce("stage", KEY, lambda out: seen.extend(p.name for p in out.iterdir()) or {})
    assert seen == ["half"], "the next maker finds what was begun, and no torn file"


def _slow_producer(root, log):
    def make(out):
        with Path(log).open("a") as file:
            file.write("begin\n")
        time.sleep(0.3)
        return {}

    Store(root).produce("stage", KEY, make)


def test_two_processes_make_an_output_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    log = tmp_path / "log"
    makers = [context.Process(target=_slow_producer, args=(tmp_path / "store", str(log))) for _ in range(2)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert log.read_text() == "begin\n"


def test_write_atomic_replaces_whole_files(tmp_path):
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


def test_digest_of_tells_items_apart():
    assert digest_of(["ab", "c"]) != digest_of(["a", "bc"])
    assert digest_of([("a", 1)]) == digest_of([["a", 1]])


def test_a_store_that_may_only_be_read_makes_nothing(tmp_path):
    with pytest.raises(NotBuilt):
        Store(tmp_path / "none", read_only=True).produce("stage", KEY, lambda out: {})
    file = tmp_path / "file"
    file.write_text("content")
    looked = FileDigests(Store(tmp_path / "none", read_only=True)).digest(file)
    assert not (tmp_path / "none").exists()
    store = Store(tmp_path / "store")
    made = store.produce("stage", KEY, lambda out: {})
    assert Store(tmp_path / "store", read_only=True).produce("stage", KEY, lambda out: {}) == made
    assert FileDigests(store).digest(file) == looked


def test_a_big_file_is_not_hashed_to_look_at_a_store(tmp_path):
    file = tmp_path / "file"
    with file.open("wb") as big:
        big.truncate(BIG_FILE + 1)
    looking = FileDigests(Store(tmp_path / "store", read_only=True))
    with pytest.raises(NotBuilt, match="was never read"):
        looking.digest(file)
    digest = FileDigests(Store(tmp_path / "store")).digest(file)
    assert looking.digest(file) == digest
