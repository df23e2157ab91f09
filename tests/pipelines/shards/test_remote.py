"""Tests of shards at URLs: on fsspec's memory and local file systems, and on an S3 server on localhost."""

import multiprocessing
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from support.shard_world import with_settings

from pipelines.core.errors import ShardError
from pipelines.core.files import file_sha256
from pipelines.core.integrity import seal
from pipelines.core.store import Store, read_manifest
from pipelines.jobs.shards import build_shards
from pipelines.shards.local_copy import ShardCache
from pipelines.shards.remote import RemoteError, ShardFiles, check_url, push, shards_url
from pipelines.shards.verify import verify


def quiet(line: str) -> None:
    """Discards progress messages."""


@pytest.fixture(scope="session")
def s3() -> Iterator[None]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    given = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in given.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3").mkdir("bucket")
        yield
    server.stop()


@pytest.fixture(params=["memory", "file", "s3"])
def url(request, tmp_path) -> str:
    """An empty URL of each kind."""
    if request.param == "s3":
        request.getfixturevalue("s3")
        return f"s3://bucket/{uuid.uuid4().hex}/shards"
    return f"memory://{uuid.uuid4().hex}/shards" if request.param == "memory" else f"file://{tmp_path}/remote/shards"


def test_pushed_shards_are_complete_and_readable_through_a_local_copy(shards, url, tmp_path):
    push(shards, url, quiet)
    assert sorted(ShardFiles(url).names()) == sorted(path.name for path in shards.iterdir())
    assert verify(url, quiet) == []
    copy = ShardCache(url, tmp_path / "cache")
    assert copy.manifest == read_manifest(shards)
    for facts in [*copy.manifest["shards"], copy.manifest["lengths"]]:
        path = copy.fetch(facts["file"])
        assert path.read_bytes() == (shards / facts["file"]).read_bytes()
        assert copy.fetch(facts["file"]) == path
    with pytest.raises(KeyError):
        copy.fetch("../secret")


def test_an_interrupted_push_resumes(shards, url):
    push(shards, url, quiet)
    files, manifest = ShardFiles(url), read_manifest(shards)
    first, second, third = (facts["file"] for facts in manifest["shards"][:3])
    file_system, root = fsspec.core.url_to_fs(url)
    # The state that an interrupted push leaves, plus a file of the right size with wrong bytes.
    files.remove("manifest.json")
    files.remove(first)
    file_system.pipe_file(f"{root}/{second}", b"x" * manifest["shards"][1]["num_bytes"])
    lines: list[str] = []
    push(shards, url, lines.append)
    line_of = {line.split(": ")[0].split()[-1]: line for line in lines}
    assert line_of[first].endswith(" bytes uploaded") and line_of[second].endswith(" bytes uploaded")
    assert line_of[third].endswith("already uploaded")
    assert verify(url, quiet) == []
    lines.clear()
    push(shards, url, lines.append)
    assert lines == [f"{url}: already complete"]


def test_a_truncated_remote_file_is_uploaded_again(shards, url):
    push(shards, url, quiet)
    file_system, root = fsspec.core.url_to_fs(url)
    name = read_manifest(shards)["shards"][1]["file"]
    file_system.pipe_file(f"{root}/{name}", b"x")
    assert f"{name}: 1 bytes, but the manifest says" in "\n".join(verify(url, quiet))
    push(shards, url, quiet)
    assert verify(url, quiet) == []


def test_different_shards_at_the_url_are_not_overwritten(shards, world, tmp_path):
    url = f"memory://{uuid.uuid4().hex}"
    push(shards, url, quiet)
    world = with_settings(world, seed=6)
    other = build_shards(Store(tmp_path / "store"), **world)
    with pytest.raises(RemoteError, match="holds different shards: use another URL"):
        push(other, url, quiet)
    assert verify(url, quiet) == []


def test_damaged_shards_are_not_uploaded(shards):
    url = f"memory://{uuid.uuid4().hex}"
    path = shards / read_manifest(shards)["shards"][0]["file"]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(RemoteError, match="has changed since it was built: run `honeybee verify"):
        push(shards, url, quiet)
    assert "manifest.json" not in ShardFiles(url).sizes()
    (shards / "manifest.json").unlink()
    with pytest.raises(ShardError, match="never finished"):
        push(shards, url, quiet)


@pytest.mark.parametrize("damage", ["missing", "edited", "swapped", "truncated"])
def test_a_local_copy_refuses_a_file_that_does_not_match_the_manifest(shards, damage, tmp_path):
    url = f"memory://{uuid.uuid4().hex}"
    push(shards, url, quiet)
    file_system, root = fsspec.core.url_to_fs(url)
    first, second = (f"{root}/{facts['file']}" for facts in read_manifest(shards)["shards"][:2])
    content = file_system.cat_file(first)
    if damage == "missing":
        file_system.rm_file(first)
    else:
        edited = content[:100] + bytes([content[100] ^ 1]) + content[101:]
        new = {"edited": edited, "truncated": content[:-1], "swapped": file_system.cat_file(second)}[damage]
        file_system.pipe_file(first, new)
    copy = ShardCache(url, tmp_path / "cache")
    mismatch = "does not match its manifest: run `honeybee verify"
    expected = "is missing: push the shards again" if damage == "missing" else mismatch
    with pytest.raises(RemoteError, match=expected):
        copy.fetch(first.rsplit("/", 1)[-1])
    assert not [path for path in (tmp_path / "cache").iterdir() if not path.name.endswith(".lock")]


def test_leftovers_of_a_push_of_different_shards_are_refused(shards, tmp_path):
    """Readers of shard-*.parquet would include the leftover file."""
    leftover = tmp_path / "remote/shard-00000-of-00099.parquet"
    leftover.parent.mkdir()
    leftover.write_bytes(b"uploaded by a push that was killed")
    with pytest.raises(RemoteError, match=r"holds different shards, such as shard-00000-of-00099\.parquet: use"):
        push(shards, f"file://{tmp_path}/remote", quiet)
    assert list(leftover.parent.iterdir()) == [leftover]


@pytest.mark.parametrize("path", ["file", "file/below"])
def test_an_unusable_cache_directory_is_named(shards, tmp_path, path):
    url = f"file://{tmp_path}/remote"
    push(shards, url, quiet)
    (tmp_path / "file").write_text("a file")
    message = rf"{tmp_path / path} cannot be used as the local cache of {url}: .*: use another directory"
    with pytest.raises(RemoteError, match=message):
        ShardCache(url, tmp_path / path)


def test_a_local_copy_needs_shards_of_the_right_format(shards, tmp_path):
    url = f"memory://{uuid.uuid4().hex}"
    with pytest.raises(ShardError, match="holds no finished shards"):
        ShardCache(url, tmp_path)
    push(shards, url, quiet)
    file_system, root = fsspec.core.url_to_fs(url)
    file_system.pipe_file(f"{root}/manifest.json", seal({**read_manifest(shards), "format": 9}).encode())
    with pytest.raises(ShardError, match="of format 9"):
        ShardCache(url, tmp_path)


def test_the_least_recently_used_files_are_removed_to_make_room(shards, tmp_path):
    url = f"file://{tmp_path}/remote"
    push(shards, url, quiet)
    made = read_manifest(shards)["shards"]
    assert len(made) >= 4
    names = [facts["file"] for facts in made[:4]]
    limit = sum(facts["num_bytes"] for facts in made[:3])
    copy = ShardCache(url, tmp_path / "cache", limit_bytes=limit, hold=1)
    one, two, _ = [copy.fetch(name) for name in names[:3]]
    os.utime(two, (1, 1))  # last used long ago
    copy.fetch(names[0])
    copy.fetch(names[3])
    assert one.is_file() and not two.exists()
    # Files in use are kept regardless of the limit.
    copy = ShardCache(url, tmp_path / "small", limit_bytes=1, hold=2)
    held = [copy.fetch(name) for name in names]
    assert [path.is_file() for path in held] == [False, False, True, True]
    copy.close()
    ShardCache(url, tmp_path / "small", limit_bytes=1).fetch(names[0])
    assert [path.is_file() for path in held] == [True, False, False, False]


@pytest.mark.parametrize("damage", [lambda data: b"cut off", lambda data: data[:-1] + bytes([data[-1] ^ 1])])
def test_a_damaged_file_in_the_cache_is_downloaded_again(shards, tmp_path, damage, caplog):
    url = f"file://{tmp_path}/remote"
    push(shards, url, quiet)
    facts = read_manifest(shards)["shards"][0]
    path = ShardCache(url, tmp_path / "cache").fetch(facts["file"])
    path.write_bytes(damage(path.read_bytes()))
    assert file_sha256(ShardCache(url, tmp_path / "cache").fetch(facts["file"])) == facts["sha256"]
    assert f"{path} is damaged: it is downloaded again" in caplog.text


def _reader(url: str, cache: str, number: int, out: str) -> None:
    copy = ShardCache(url, Path(cache), limit_bytes=1, hold=1)
    names = [facts["file"] for facts in copy.manifest["shards"]]
    good = True
    for turn in range(30):
        name = names[(turn * (number + 1)) % len(names)]
        path = copy.fetch(name)
        time.sleep(0.001)
        good &= file_sha256(path) == next(f["sha256"] for f in copy.manifest["shards"] if f["file"] == name)
    Path(out).write_text(str(good))


def test_several_processes_can_share_a_cache_that_is_too_small_for_them(shards, tmp_path):
    url = f"file://{tmp_path}/remote"
    push(shards, url, quiet)
    context = multiprocessing.get_context("spawn")
    outs = [tmp_path / f"out{n}" for n in range(3)]
    processes = [
        context.Process(target=_reader, args=(url, str(tmp_path / "cache"), number, str(out)))
        for number, out in enumerate(outs)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [out.read_text() for out in outs] == ["True"] * 3


def test_urls_are_checked_before_anything_runs():
    check_url("s3://bucket/prefix")
    for wrong in ("bucket/prefix", "nonsense://bucket"):
        with pytest.raises(RemoteError, match=wrong):
            check_url(wrong)


def test_an_unreachable_server_is_named(shards, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(RemoteError, match="s3://nowhere/x/"):
        push(shards, "s3://nowhere/x", quiet)
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_shards_are_stored_below_the_remote_of_the_recipe(tmp_path):
    assert shards_url("s3://bucket/p/", tmp_path / "0123") == "s3://bucket/p/shards/0123"
