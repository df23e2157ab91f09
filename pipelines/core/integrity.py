"""Checksums of a directory: its manifest lists every file with size and SHA-256, and ends with a checksum of its own.

A manifest is sealed: its last key, `checksum`, is the SHA-256 of all bytes before it, and what follows is fixed. So one
changed bit in any file of the directory, the manifest included, is found by any check.
"""

import fnmatch
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.core.errors import StoreError
from pipelines.core.files import file_sha256, write_atomic

MANIFEST = "manifest.json"
_TOGETHER = 64  # files that a thread reads in a row
CONTENTS, CHECKSUM = "contents", "checksum"  # keys that `write_manifest` adds
_SEALED = re.compile(rb'(.*)\n "checksum": "([0-9a-f]{64})"\n\}\n', re.DOTALL)
_AGAIN = "build its recipe again, which rebuilds it; if it is a copy, copy it again"


class DamagedError(StoreError):
    """A file that is not what was written; the message names it and says what to do."""


class Fault(NamedTuple):
    """A file of a directory that is not what its manifest says."""

    path: Path
    problem: str

    def __str__(self) -> str:
        return f"{self.path} {self.problem}"


class Known:
    """The digests of files that a run has read, so that it reads each file once. Not kept on disk: the next run reads
    the files again, and finds a change that left size and times as they were."""

    def __init__(self) -> None:
        self._digests: dict[str, str] = {}

    def digest(self, path: Path) -> str:
        """Returns the SHA-256 of a file. Raises OSError if it cannot be read."""
        state = file_state(path)
        if state not in self._digests:
            self._digests[state] = file_sha256(path)
        return self._digests[state]

    def digests(self, paths: Iterable[Path]) -> list[str]:
        """Returns the digests of files, in order, reading several at once. Raises as `digest`."""
        return list(_in_threads(self.digest, list(paths)))


def file_state(path: Path) -> str:
    """Returns a string that changes when the file is written to or replaced, even if its size and modification time are
    set to what they were. Raises OSError if it cannot be examined."""
    stat = path.stat()
    return f"{path.absolute()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}|{stat.st_ino}"


def seal(facts: Mapping[str, Any]) -> str:
    """Returns `facts` as JSON text with its checksum as the last key. Raises TypeError as json.dumps does."""
    own = {key: value for key, value in facts.items() if key != CHECKSUM}
    text = json.dumps({**own, CHECKSUM: ""}, indent=1, ensure_ascii=False)
    covered = text.removesuffix(f'\n "{CHECKSUM}": ""\n}}')
    return f'{covered}\n "{CHECKSUM}": "{hashlib.sha256(covered.encode()).hexdigest()}"\n}}\n'


def unseal(data: bytes, where: object, remedy: str = _AGAIN) -> dict[str, Any]:
    """Returns the content of sealed text, with the checksum. Raises DamagedError, naming `where`, if a byte of it has
    changed or if it was never sealed."""
    problem = _problem(data)
    if problem:
        raise DamagedError(f"{where} {problem}: {remedy}")
    return json.loads(data)


def _problem(data: bytes) -> str | None:
    """Returns what is wrong with sealed text, None if it is as it was written."""
    found = _SEALED.fullmatch(data)
    if found is not None and hashlib.sha256(found[1]).hexdigest() == found[2].decode():
        return None
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        return f"is damaged: it is not valid JSON ({error})"
    if isinstance(content, dict) and CHECKSUM not in content:
        return "has no checksum, so it is damaged or an earlier version wrote it"
    return "is damaged: its checksum is not that of its content"


def read_manifest(directory: Path) -> dict[str, Any]:
    """Returns the manifest of a complete directory. Raises FileNotFoundError if the directory is incomplete,
    DamagedError if the manifest is not as it was written."""
    return unseal(_manifest_bytes(directory), directory / MANIFEST)


def _manifest_bytes(directory: Path) -> bytes:
    try:
        return (directory / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{directory} has no {MANIFEST}, so it was never finished: build it again") from None


def lists_checksums(directory: Path) -> bool:
    """Whether a directory has a manifest of this kind, intact or damaged, and not one of another program or none."""
    try:
        data = (directory / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return any(f'"{key}"'.encode() in data for key in (CONTENTS, CHECKSUM))  # one changed bit cannot hide both


def write_manifest(
    directory: Path, facts: Mapping[str, Any], known: Known | None = None, history: Iterable[str] = ()
) -> dict[str, Any]:
    """Completes a directory: writes its manifest, which holds `facts` and the digests of all files; returns it.

    Hidden files are left out. history: subdirectories whose own complete directories (checkpoints) are left out too,
    since they have manifests of their own.
    """
    given = {key: value for key, value in facts.items() if key not in (CONTENTS, CHECKSUM)}
    paths = sorted(_files(directory, tuple(history)))
    digests = (known or Known()).digests(directory / path for path in paths)
    sizes = [(directory / path).stat().st_size for path in paths]
    contents = {path: [size, digest] for path, size, digest in zip(paths, sizes, digests, strict=True)}
    manifest = {**given, CONTENTS: contents}
    write_atomic(directory / MANIFEST, seal(manifest))
    return manifest


def _files(directory: Path, history: tuple[str, ...]) -> Iterator[str]:
    for folder, inner, files in os.walk(directory):
        below = Path(folder).relative_to(directory).as_posix()
        in_history = any(below == part or below.startswith(f"{part}/") for part in history)
        if in_history and MANIFEST in files:
            inner[:] = []
            continue
        inner[:] = [name for name in inner if not name.startswith(".")]
        for name in files:
            path = name if below == "." else f"{below}/{name}"
            if path != MANIFEST and not name.startswith("."):
                yield path


def uncovered(directory: Path, history: str | None) -> list[Path]:
    """Returns the files that only the manifest of the directory itself covers: not those of directories below it that
    have manifests of their own, nor those of `history`."""
    found: list[Path] = []
    for folder, inner, files in os.walk(directory):
        here = Path(folder)
        if here != directory and (MANIFEST in files or (history and here == directory / history)):
            inner[:] = []
            continue
        found += (here / name for name in files)
    return found


def listed(directory: Path, pattern: str) -> list[Path]:
    """Returns the files in the manifest that match the pattern, sorted by path. Raises as `read_manifest`."""
    return [directory / name for name in sorted(fnmatch.filter(read_manifest(directory)[CONTENTS], pattern))]


def faults(directory: Path, known: Known | None = None, pattern: str = "*") -> list[Fault]:
    """Returns the files of a complete directory that are not as they were written, its manifest first. pattern: which
    of the listed files to read. Raises FileNotFoundError if the directory has no manifest, OSError if a file cannot be
    read."""
    data = _manifest_bytes(directory)
    wrong = _problem(data)
    if wrong:
        return [Fault(directory / MANIFEST, wrong)]
    contents, known = json.loads(data)[CONTENTS], known or Known()

    def problem(name: str) -> str | None:
        size, digest = contents[name]
        try:
            if known.digest(directory / name) == digest:
                return None
            found = (directory / name).stat().st_size
            different = "its checksum has changed" if found == size else f"it has {found:,} bytes instead of {size:,}"
            return f"is damaged: {different}"
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return "is missing"

    names = sorted(fnmatch.filter(contents, pattern))
    problems = _in_threads(problem, names)
    return [Fault(directory / name, each) for name, each in zip(names, problems, strict=True) if each]


def _in_threads(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """Yields the results of a function that reads a file. Each thread takes several items at once, since starting a
    task takes as long as hashing a small file; hashing a large one does not hold the GIL."""
    threads = os.cpu_count() or 1
    size = max(1, min(_TOGETHER, len(items) // threads))
    chunks = [items[start : start + size] for start in range(0, len(items), size)]
    if len(chunks) <= 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        for results in pool.map(lambda chunk: list(map(function, chunk)), chunks):
            yield from results


def check(directory: Path, known: Known | None = None, pattern: str = "*") -> None:
    """Raises DamagedError, naming the first file, if a listed file that matches the pattern, or the manifest, is not as
    it was written; FileNotFoundError if there is no manifest."""
    found = faults(directory, known, pattern)
    if found:
        more = f" (and {len(found) - 1} more files)" if len(found) > 1 else ""
        raise DamagedError(f"{found[0]}{more}: {_AGAIN}")
