"""The content-addressed store: entries `store/<stage>/<fingerprint>/`, each complete once its manifest exists.

An entry is named by a fingerprint of everything its bytes depend on. `produce` returns a complete entry, after checking
that its files are as they were written, and otherwise builds it under a lock. A killed build leaves a directory without
a manifest, and so does damage; the next build gets the same directory and may reuse the files that it can verify.
"""

import contextlib
import errno
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.core import integrity
from pipelines.core.errors import StoreError
from pipelines.core.files import explain_full_disk, write_atomic
from pipelines.core.integrity import MANIFEST, DamagedError, Fault, Known, file_state, read_manifest
from pipelines.core.locks import lock

__all__ = ["MANIFEST", "DamagedError", "FileDigests", "NotBuilt", "Store", "digest_of", "fingerprint", "read_manifest"]

FORMAT = 2  # of an entry's manifest: raise it when entries written before can no longer be read
BIG_FILE = 64 << 20  # bytes; with a read-only store, larger files are not read
_CANNOT_WRITE = (errno.EROFS, errno.EACCES, errno.EPERM)


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


class NotBuilt(LookupError):
    """The requested entry is not complete, and the store is read-only."""


class Store:
    """The outputs of all stages under one root. read_only: nothing is written, and a missing or damaged entry raises
    NotBuilt. log: called with what an entry's files or another run make necessary."""

    def __init__(self, root: Path | str, read_only: bool = False, log: Callable[[str], None] | None = None):
        self.root = Path(root).resolve()
        self.read_only = read_only
        self.log = log or logging.getLogger("honeybee.store").warning
        self.known = Known()  # each run has a store of its own, and so reads every file once

    def path(self, kind: str, key: Mapping[str, Any]) -> Path:
        return self.root / kind / fingerprint([FORMAT, key])

    def entry(self, kind: str, name: str) -> Path:
        """Returns the directory of the entry of that name, a fingerprint; it may not be complete."""
        return self.root / kind / name

    def entries(self, kind: str, pattern: str | None = None) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Yields the complete entries of a kind with their manifests, newest first. Damaged ones are logged and left
        out. pattern: which of their files are checked, too, as each entry is yielded."""
        built: list[tuple[int, Path]] = []
        for path in (self.root / kind).glob(f"*/{MANIFEST}"):
            with contextlib.suppress(FileNotFoundError):  # another process may remove it
                built.append((path.stat().st_mtime_ns, path.parent))
        for _, directory in sorted(built, reverse=True):
            with contextlib.suppress(FileNotFoundError):
                found = integrity.faults(directory, self.known, pattern or "")
                if found:
                    self.log(f"{found[0]}: {directory} is not reused")
                else:
                    yield directory, read_manifest(directory)

    def has(self, kind: str, key: Mapping[str, Any]) -> bool:
        return (self.path(kind, key) / MANIFEST).is_file()

    def produce(
        self,
        kind: str,
        key: Mapping[str, Any],
        make: Callable[[Path], Mapping[str, Any]],
        history: str | None = None,
    ) -> Path:
        """Returns the directory of (kind, key), after calling `make(directory)` if it is not complete. If files of a
        complete entry are not as they were written, they are logged and removed, and the entry is rebuilt.

        key: everything that the output's bytes depend on, as JSON values. make: fills the directory and returns the
        additional entries of the manifest, which is written last and holds the checksums of all files. history: a
        subdirectory with what `make` could only write again from the start, such as metrics: damaged files in it are
        set aside, and complete directories in it (checkpoints) are left to those who read them.
        Raises StoreError, naming a file, if the disk is full or the store cannot be written, NotBuilt if it is
        read-only.
        """
        directory = self.path(kind, key)
        if self._is_sound(directory):
            return directory
        if self.read_only:
            raise NotBuilt(f"{directory} has not been built, or is damaged")
        with explain_full_disk(directory, StoreError), self._writing(directory):
            found = self._faults(directory)
            if found != []:
                directory.mkdir(parents=True, exist_ok=True)
                self._remove(directory, found or [], history)
                for partial in directory.rglob(".*.partial"):  # left by a killed build
                    if partial.is_file():
                        partial.unlink(missing_ok=True)
                manifest = {"stage": kind, "key": key, **make(directory)}
                integrity.write_manifest(directory, manifest, self.known, (history,) if history else ())
        return directory

    def check(self, directory: Path) -> None:
        """Raises DamagedError if a directory with a manifest, anywhere, has files that are not as they were written."""
        integrity.check(directory, self.known)

    def _is_sound(self, directory: Path) -> bool:
        found = self._faults(directory)
        for fault in found or ():
            self.log(f"{fault}: {'the next build rebuilds it' if self.read_only else 'it is rebuilt'}")
        return found == []

    def _faults(self, directory: Path) -> list[Fault] | None:
        """Returns the damaged files of an entry, None if it is not complete."""
        try:
            found = integrity.faults(directory, self.known)
            if not found and fingerprint([FORMAT, read_manifest(directory).get("key")]) != directory.name:
                return [Fault(directory / MANIFEST, "belongs to another entry")]
            return found
        except FileNotFoundError:
            return None

    @contextlib.contextmanager
    def _writing(self, directory: Path) -> Iterator[None]:
        """Holds the lock of an entry. Raises StoreError if the store cannot be written."""
        own = contextlib.ExitStack()
        try:
            own.enter_context(lock(directory.with_name(f".{directory.name}.lock"), directory, self.log))
        except OSError as error:
            if error.errno not in _CANNOT_WRITE:
                raise
            raise StoreError(
                f"{directory} must be built, but the store cannot be written to ({error}): make it writable, or "
                "choose another paths.store"
            ) from None
        with own:
            yield

    def _remove(self, directory: Path, found: list[Fault], history: str | None) -> None:
        """Removes the manifest and the damaged files of an entry. The other files are as they were written; if the
        manifest is damaged, this is unknown of all files but those in directories with manifests of their own."""
        damaged = [path for path, _ in found]
        if directory / MANIFEST in damaged:
            damaged = integrity.uncovered(directory, history)
        (directory / MANIFEST).unlink(missing_ok=True)
        for path in damaged:
            if history and path.is_relative_to(directory / history) and path.is_file():
                aside = path.with_name(f".{path.name}.damaged")
                path.replace(aside)
                self.log(f"{path} is set aside as {aside.name}, since only a new run could write it again")
            elif path.is_file():
                path.unlink()


class FileDigests:
    """SHA-256 digests of input files, cached by (path, size, times, inode) so that big files are hashed once. With a
    read-only store, nothing is cached, and a big file that no build has read raises NotBuilt."""

    def __init__(self, store: Store):
        self._store = store
        self._cache_path = store.root / "digests.json"

    def digest(self, path: Path) -> str:
        return self.digests([path])[0]

    def digests(self, paths: Iterable[Path]) -> list[str]:
        """Returns the digests of files, in order. Raises OSError if a file cannot be read."""
        cached, states = self._read(), [(path, file_state(path)) for path in paths]
        new = {state: path for path, state in states if state not in cached}
        for path in new.values() if self._store.read_only else ():
            if path.stat().st_size > BIG_FILE:
                raise NotBuilt(f"{path} has not been read by a build yet")
        fresh = dict(zip(new, self._store.known.digests(new.values()), strict=True))
        self._add(fresh)
        known = cached | fresh
        return [known[state] for _, state in states]

    def _add(self, fresh: Mapping[str, str]) -> None:
        if not fresh or self._store.read_only:
            return
        try:
            own = lock(self._cache_path.with_name(".digests.lock"), self._cache_path, self._store.log)
            with explain_full_disk(self._cache_path, StoreError), own:
                write_atomic(self._cache_path, integrity.seal({"digests": {**self._read(), **fresh}}))
        except OSError as error:
            if error.errno not in _CANNOT_WRITE:  # else the next run reads these files again
                raise

    def _read(self) -> dict[str, str]:
        try:
            return integrity.unseal(self._cache_path.read_bytes(), self._cache_path, "all files are read again")[
                "digests"
            ]
        except FileNotFoundError:
            return {}
        except DamagedError as error:
            self._store.log(str(error))
            return {}
