"""The content-addressed store: `store/<stage>/<fingerprint>/`, whole only when its manifest is there.

A stage's directory is named by a fingerprint of everything its bytes depend on. `produce` returns it at once when
it is whole, else makes it under a lock. A killed maker leaves a directory without a manifest: the next maker gets
the same directory and may keep the files that it can verify.
"""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
BIG_FILE = 64 << 20  # bytes; what only looks at a store does not read more than this of a file


def fingerprint(key: Any) -> str:
    """The first 16 hex digits of the SHA-256 of `key` as canonical JSON. Raises TypeError for what JSON cannot say."""
    text = json.dumps(key, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest_of(items: Iterable[Any]) -> str:
    """The SHA-256 of a stream of JSON values, for keys that are too long to stand in a manifest."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps(item, separators=(",", ":"), ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """Of a file's bytes, as hex digits. Raises OSError for a file that cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a path to write to; it becomes `path` when the block ends without an error, and is removed otherwise."""
    partial = partial_of(path)
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def whole_lines(path: Path) -> list[str]:
    """The whole lines of a file; a killed writer leaves half of one at the end."""
    with path.open(encoding="utf-8", newline="\n") as file:
        return [line for line in file if line.endswith("\n")]


def write_atomic(path: Path, data: bytes | str) -> None:
    """Writes a file so that a reader sees all of it or nothing, also after a power cut."""
    with whole_file(path) as partial:
        partial.write_bytes(data.encode() if isinstance(data, str) else data)


def partial_of(path: Path) -> Path:
    """Where a file is written before it takes its place: another name for every writer, on any machine."""
    return path.with_name(f".{path.name}.{os.urandom(6).hex()}.partial")


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a whole directory. Raises FileNotFoundError if the directory is not whole."""
    path = directory / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{directory} has no {MANIFEST}: it was never finished; build it again")
    return json.loads(path.read_text())


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """One process at a time, on this machine; the kernel frees the lock when its holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


class NotBuilt(LookupError):
    """What was asked for is not whole in a store that may only be read."""


class Store:
    """Outputs of every stage under one root. read_only: nothing is made or written; what is not there is NotBuilt."""

    def __init__(self, root: Path | str, read_only: bool = False):
        self.root = Path(root).resolve()
        self.read_only = read_only

    def path(self, stage: str, key: Mapping[str, Any]) -> Path:
        return self.root / stage / fingerprint(key)

    def has(self, stage: str, key: Mapping[str, Any]) -> bool:
        return (self.path(stage, key) / MANIFEST).is_file()

    def produce(self, stage: str, key: Mapping[str, Any], make: Callable[[Path], Mapping[str, Any]]) -> Path:
        """Returns the directory of (stage, key), calling `make(directory)` first if it is not whole.

        key: everything that the output's bytes depend on, as JSON. make: fills the directory and returns what the
        manifest shall say of it. The manifest is written last.
        """
        directory = self.path(stage, key)
        if (directory / MANIFEST).is_file():
            return directory
        if self.read_only:
            raise NotBuilt(f"{directory} is not built")
        with lock(self.root / stage / f".{directory.name}.lock"):
            if not (directory / MANIFEST).is_file():
                directory.mkdir(parents=True, exist_ok=True)
                for partial in directory.rglob(".*.partial"):  # of a maker that was killed
                    partial.unlink(missing_ok=True)
                result = make(directory)
                manifest = {"stage": stage, "key": key, **result}
                write_atomic(directory / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
        return directory


class FileDigests:
    """SHA-256 of input files, remembered by (path, size, modification time) so that big files are hashed once. With a
    store that may only be read, nothing is remembered, and a big file that no build has read is NotBuilt."""

    def __init__(self, store: Store):
        self._memo_path = store.root / "digests.json"
        self._read_only = store.read_only

    def digest(self, path: Path) -> str:
        return self.digests([path])[0]

    def digests(self, paths: Iterable[Path]) -> list[str]:
        """The digests of files, in order. Raises OSError for a file that cannot be read."""
        known = self._read()
        fresh: dict[str, str] = {}
        result = []
        for path in paths:
            key = _as_it_is(path)
            if key not in known:
                if self._read_only and path.stat().st_size > BIG_FILE:
                    raise NotBuilt(f"{path} was never read")
                known[key] = fresh[key] = file_sha256(path)
            result.append(known[key])
        self._add(fresh)
        return result

    def remember(self, digests: Mapping[Path, str]) -> None:
        """Notes the digests of files that were just written, so that they need not be read for it."""
        self._add({_as_it_is(path): digest for path, digest in digests.items()})

    def _add(self, fresh: Mapping[str, str]) -> None:
        if fresh and not self._read_only:
            self._memo_path.parent.mkdir(parents=True, exist_ok=True)
            with lock(self._memo_path.with_name(".digests.lock")):
                write_atomic(self._memo_path, json.dumps({**self._read(), **fresh}))

    def _read(self) -> dict[str, str]:
        # A memo that cannot be read costs only time: the files are hashed again.
        with contextlib.suppress(FileNotFoundError, ValueError):
            memo = json.loads(self._memo_path.read_text())
            return memo if isinstance(memo, dict) else {}
        return {}


def _as_it_is(path: Path) -> str:
    """Another text as soon as the file was written to. Raises OSError."""
    stat = path.stat()
    return f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
