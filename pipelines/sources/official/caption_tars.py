"""Reads webdataset tars of image–caption samples in place; the tars are never unpacked.

A row is a sample: consecutive members whose names agree up to the first dot of the last path component. An image
reference gives tar, offset and size (see pipelines/images/table.py). Row indices continue across tars, sorted by path.
Hidden members, such as the `._` file that macOS writes before each other member, are skipped and counted.
"""

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.core.walk import is_hidden
from pipelines.sources.base import Skips, Source, SourceError, file_batches, matching_files
from pipelines.sources.fields import Reject, Unique, clean, show, text
from pipelines.sources.formats.json_stream import object_of
from pipelines.sources.formats.tar import Member, Tar

IMAGES = ("jpg", "jpeg", "png", "webp")
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".lz4")  # not read in place: an error rather than missing samples
_SHORT = ("tgz", "tbz2", "txz", "tzst")
MAX_TEXT = 1 << 20  # bytes of a .txt or .json member

Row = tuple[str, str]


def _split(name: str) -> tuple[str, str]:
    """Splits a member name into sample key and lower-case extension; a name without an extension is its own key."""
    stem, _, extension = name.rpartition("/")[2].partition(".")
    return (name[: -len(extension) - 1], extension.lower()) if stem and extension else (name, "")


def _key(member: Member) -> str:
    return _split(member.name)[0]


def _content(tar: Tar, member: Member) -> str:
    if member.size > MAX_TEXT:
        raise Reject("text_too_large", f"{show(member.name)} has {member.size} bytes, more than {MAX_TEXT}")
    data = tar.read(member.offset, member.size)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Reject("not_utf8", f"{show(member.name)}: byte {error.start} of {show(data)}") from None


def _caption(tar: Tar, sample: dict[str, Member]) -> str:
    """Returns the text of the .txt member, or `caption` of the .json if the sample has no .txt."""
    if "txt" in sample:
        return clean(show(sample["txt"].name), _content(tar, sample["txt"]), "empty_caption")
    if "json" not in sample:
        raise Reject("no_caption", f"the sample has no .txt and no .json, only {show(sorted(sample))}")
    name = sample["json"].name
    try:
        record = json.loads(_content(tar, sample["json"]), object_pairs_hook=object_of)
    except (ValueError, RecursionError) as error:
        raise Reject("bad_json", f"{show(name)}: {error}") from None
    return text(record, "caption", "empty_caption", f"{show(name)}: ")


def _sample(members: list[Member]) -> dict[str, Member]:
    """Returns extension → member. Rejects: bad_path, bad_member, repeated_member."""
    sample: dict[str, Member] = {}
    for member in members:
        if member.name.startswith("/") or ".." in member.name.split("/"):
            raise Reject("bad_path", f"member {show(member.name)} has an absolute path or one with '..'")
        extension = _split(member.name)[1]
        if not member.is_file or not extension:
            raise Reject("bad_member", f"{show(member.name)} is not a regular file with an extension")
        if extension in sample:
            raise Reject("repeated_member", f"{show(member.name)} has the extension of {show(sample[extension].name)}")
        sample[extension] = member
    return sample


def _row(reference: str, tar: Tar, sample: dict[str, Member]) -> Row:
    images = [extension for extension in IMAGES if extension in sample]
    if not images:
        raise Reject("no_image", f"the sample has none of {IMAGES}, only {show(sorted(sample))}")
    if len(images) > 1:
        raise Reject("repeated_member", f"the sample has {len(images)} images: {images}")
    image = sample[images[0]]
    return f"{reference}#{image.offset}:{image.size}", _caption(tar, sample)


def _shown(path: Path, tar: Tar, skips: Skips) -> Iterator[Member]:
    for member in tar.members():
        if is_hidden(member.name):
            skips.note("hidden_member", f"{path.name}: {member.name}")
        else:
            yield member


def _rows(path: Path, reference: str, skips: Skips) -> Iterator[Row | Reject]:
    unique = Unique("sample")
    empty = True
    with Tar(path) as tar:
        for key, group in groupby(_shown(path, tar, skips), _key):
            empty = False
            try:
                sample = _sample(list(group))
                unique.check(key)
                yield _row(reference, tar, sample)
            except Reject as reject:
                yield reject
    if empty:
        raise SourceError(f"{path} has no samples: fetch the file again, or remove it")


def _parsed(row: Any) -> Row:
    return row


def _files(root: Path) -> list[Path]:
    suffixes = [*(f"tar{suffix}" for suffix in _COMPRESSED), *_SHORT]
    files = matching_files(root, "**/*.tar", *(f"**/*.{suffix}" for suffix in suffixes))
    for path in files:
        if path.suffix != ".tar":
            with Tar(path):  # raises if it is compressed
                raise SourceError(f"{path} has the name of a compressed tar, but is none: rename or remove it")
    return files


_LICENCE = "captions: see the dataset's own page; images from the open web: their owners hold the rights"


def source(name: str) -> Source:
    """Returns a source of webdataset tars, anywhere below the annotations root, which is also the images root."""

    def read(root: Path) -> Iterator[pa.RecordBatch]:
        skips = Skips()

        def rows(path: Path) -> Iterator[Row | Reject]:
            return _rows(path, path.relative_to(root).as_posix(), skips)

        yield from file_batches("caption", root, _files(root), rows, _parsed, skips)

    return Source(name, "caption", _files, read, licence=_LICENCE)
