"""Tests of files: errors of a full disk, and the digests of a directory's files."""

import errno
import os

import pytest

from pipelines.core.errors import ShardError
from pipelines.core.files import explain_full_disk, file_sha256, named_digests


class WriteError(RuntimeError):
    pass


def full(number: int = errno.ENOSPC, name: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), name)


def test_a_full_disk_is_explained(tmp_path):
    path = tmp_path / "shard.parquet"
    with (
        pytest.raises(ShardError, match=rf"{path} cannot be written: the disk is full\. Free space"),
        explain_full_disk(path),
    ):
        raise full(name=str(tmp_path / ".shard.parquet.partial"))
    with (
        pytest.raises(WriteError, match=rf"{path} cannot be written: the quota is exceeded\. Ask for more\."),
        explain_full_disk(tmp_path, WriteError, "Ask for more."),
    ):
        raise full(errno.EDQUOT, str(path))


def test_an_error_with_its_number_only_in_its_text_is_explained(tmp_path):
    text = "I/O error: No space left on device (os error 28)"
    with (
        pytest.raises(ShardError, match=f"{tmp_path} cannot be written: the disk is full"),
        explain_full_disk(tmp_path),
    ):
        raise ValueError(text)


def test_other_errors_pass_through(tmp_path):
    for error in (full(errno.EACCES), ValueError("(os error 13)"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as raised, explain_full_disk(tmp_path):
            raise error
        assert raised.value is error


def test_digests_are_sorted_by_path(tmp_path):
    (tmp_path / "b").mkdir()
    files = [tmp_path / "c.txt", tmp_path / "b" / "x.txt", tmp_path / "a.txt"]
    for path in files:
        path.write_text(path.name)
    assert list(named_digests(tmp_path, files).items()) == [
        (name, file_sha256(tmp_path / name)) for name in ("a.txt", "b/x.txt", "c.txt")
    ]
