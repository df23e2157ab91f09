"""The content-addressed store: entries `store/<stage>/<fingerprint>/`, each complete once its manifest exists.

An entry is named by a fingerprint of everything its bytes depend on. `produce` returns a complete entry immediately and
otherwise builds it under a lock. A killed build leaves a directory without a manifest; the next build gets the same
directory and may reuse the files that it can verify.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pipelines.core.files import file_sha256, lock, write_atomic

MANIFEST = "manifest.json"
BIG_FILE = 64 << 20  # bytes; with a read-only store, larger files are not read


def fingerprint(key: Any) -> str:
    """Returns the first 16 hex digits of the SHA-256 of `key` as canonical JSON. Raises TypeError for a value that JSON
    cannot represent."""
    text = json.dumps(key, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest_of(items: Iterable[Any]) -> str:
    """Returns the SHA-256 of a stream of JSON values, for keys that are too long to be listed in a manifest."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps(item, separators=(",", ":"), ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def read_manifest(directory: Path) -> dict[str, Any]:
    """Returns the manifest of a complete directory. Raises FileNotFoundError if the directory is incomplete."""
    path = directory / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{directory} has no {MANIFEST}, so it was never finished: build it again")
    return json.loads(path.read_text())


class NotBuilt(LookupError):
    """The requested entry is not complete, and the store is read-only."""


class Store:
    """The outputs of all stages under one root. read_only: nothing is written, and a missing entry raises NotBuilt."""

    def __init__(self, root: Path | str, read_only: bool = False):
        self.root = Path(root).resolve()
        self.read_only = read_only

    def path(self, kind: str, key: Mapping[str, Any]) -> Path:
        return self.root / kind / fingerprint(key)

    def entry(self, kind: str, name: str) -> Path:
        """Returns the directory of the entry of that name, a fingerprint; it may not be complete."""
        return self.root / kind / name

    def entries(self, kind: str) -> list[Path]:
        """Returns the complete entries of a kind, newest first."""
        built: list[tuple[int, Path]] = []
        for path in (self.root / kind).glob(f"*/{MANIFEST}"):
            with contextlib.suppress(FileNotFoundError):  # another process may remove it
                built.append((path.stat().st_mtime_ns, path.parent))
        return [directory for _, directory in sorted(built, reverse=True)]

    def has(self, kind: str, key: Mapping[str, Any]) -> bool:
        return (self.path(kind, key) / MANIFEST).is_file()

    def produce(self, kind: str, key: Mapping[str, Any], make: Callable[[Path], Mapping[str, Any]]) -> Path:
        """Returns the directory of (kind, key), after calling `make(directory)` if it is not complete.

        key: everything that the output's bytes depend on, as JSON values. make: fills the directory and returns the
        additional entries of the manifest, which is written last.
        """
        directory = self.path(kind, key)
        if (directory / MANIFEST).is_file():
            return directory
        if self.read_only:
            raise NotBuilt(f"{directory} has not been built")
        with lock(self.root / kind / f".{directory.name}.lock"):
            if not (directory / MANIFEST).is_file():
                directory.mkdir(parents=True, exist_ok=True)
                for partial in directory.rglob(".*.partial"):  # left by a killed build
                    partial.unlink(missing_ok=True)
                result = make(directory)
                manifest = {"stage": kind, "key": key, **result}
                write_atomic(directory / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
        return directory


class FileDigests:
    """SHA-256 digests of input files, cached by (path, size, modification time) so that big files are hashed once. With
    a read-only store, nothing is cached, and a big file that no build has read raises NotBuilt."""

    def __init__(self, store: Store):
        self._cache_path = store.root / "digests.json"
        self._read_only = store.read_only

    def digest(self, path: Path) -> str:
        return self.digests([path])[0]

    def digests(self, paths: Iterable[Path]) -> list[str]:
        """Returns the digests of files, in order. Raises OSError if a file cannot be read."""
        known = self._read()
        fresh: dict[str, str] = {}
        result = []
        for path in paths:
            key = _file_state(path)
            if key not in known:
                if self._read_only and path.stat().st_size > BIG_FILE:
                    raise NotBuilt(f"{path} has not been read by a build yet")
                known[key] = fresh[key] = file_sha256(path)
            result.append(known[key])
        self._add(fresh)
        return result

    def remember(self, digests: Mapping[Path, str]) -> None:
        """Caches the digests of files that were just written, so that they need not be read again."""
        self._add({_file_state(path): digest for path, digest in digests.items()})

    def _add(self, fresh: Mapping[str, str]) -> None:
        if fresh and not self._read_only:
            self._cache_path.parent.mkdir(parents=True, exist_ok=True)
            with lock(self._cache_path.with_name(".digests.lock")):
                write_atomic(self._cache_path, json.dumps({**self._read(), **fresh}))

    def _read(self) -> dict[str, str]:
        # An unreadable cache only costs time, since the files are hashed again.
        with contextlib.suppress(FileNotFoundError, ValueError):
            cached = json.loads(self._cache_path.read_text())
            return cached if isinstance(cached, dict) else {}
        return {}


def _file_state(path: Path) -> str:
    """Returns a string that changes when the file is written to. Raises OSError if it cannot be examined."""
    stat = path.stat()
    return f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
