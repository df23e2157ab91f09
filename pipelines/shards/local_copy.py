"""A local, bounded cache of the shards of a remote directory."""

import fcntl
import logging
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

from pipelines.core.files import atomic_file, explain_full_disk, file_sha256
from pipelines.core.locks import lock
from pipelines.shards.manifest import check_format
from pipelines.shards.remote import RemoteError, ShardFiles

log = logging.getLogger("honeybee.training")


class ShardCache:
    """A cache in a local directory for the shards at a URL, which are downloaded on demand.

        cache = ShardCache("s3://bucket/shards/0123456789abcdef", Path("/local/cache"), limit_bytes=100 << 30)
        manifest = cache.manifest                   # the manifest at the URL, whose format has been checked
        path = cache.fetch("shard-00000-of-00042.parquet")

    `fetch` verifies the SHA-256 of a download, and of a file from an earlier run, against the manifest. File names in
    the cache contain their checksum, so several runs, URLs and processes of one machine can share a directory: each
    file is downloaded once, while the other processes wait for it. If the cache exceeds `limit_bytes` (None means no
    limit), the least recently used files are removed, except those in use: the last `hold` files that each ShardCache
    has fetched. A path is therefore valid until its ShardCache has fetched `hold` other files or is closed; a file that
    is already open stays readable anyway. The disk must have room for all files in use, even beyond the limit. Create
    one instance per process.
    """

    def __init__(self, url: str, directory: Path, limit_bytes: int | None = None, hold: int = 4):
        """Raises ShardError if the URL has no shards of this format, RemoteError if the URL cannot be read or the
        directory cannot be written."""
        self.url, self.directory, self.limit_bytes, self.hold = url.rstrip("/"), directory, limit_bytes, hold
        self._files = ShardFiles(self.url)
        self.manifest: dict[str, Any] = self._files.manifest()
        check_format(self.manifest, url)
        named = [*self.manifest["shards"], self.manifest["lengths"]]
        self._facts = {facts["file"]: facts for facts in named}
        self._held: OrderedDict[Path, BinaryIO] = OrderedDict()
        self._checked: set[Path] = set()
        try:
            directory.mkdir(parents=True, exist_ok=True)
            (directory / ".room.lock").touch()
        except OSError as error:
            raise RemoteError(
                f"{directory} cannot be used as the local cache of {url}: {error}: use another directory"
            ) from None

    def fetch(self, file: str) -> Path:
        """Returns the local path of a file, downloading it if needed. file: its name in the manifest. Raises KeyError
        if the manifest does not list it, RemoteError if it is missing or has a wrong checksum, ShardError for a full
        disk."""
        facts = self._facts[file]
        path = self.directory / f"{facts['sha256'][:32]}-{file}"
        self._hold(path)
        with lock(self._lock_of(path, "fetch"), path):
            if not self._is_sound(path, facts):
                self._make_room(facts["num_bytes"])
                with explain_full_disk(path), atomic_file(path) as partial:
                    self._download(file, facts["sha256"], partial)
        os.utime(path)  # records the last use
        return path

    def _is_sound(self, path: Path, facts: dict[str, Any]) -> bool:
        """Returns whether a file is here and has the right bytes, which are read once for each instance."""
        if path in self._checked and path.is_file():
            return True
        if not path.is_file():
            return False
        if path.stat().st_size != facts["num_bytes"] or file_sha256(path) != facts["sha256"]:
            log.warning("%s is damaged: it is downloaded again", path)
            return False
        self._checked.add(path)
        return True

    def close(self) -> None:
        """Releases all files, so that they may be removed."""
        while self._held:
            self._held.popitem()[1].close()

    def _download(self, file: str, sha256: str, path: Path) -> None:
        for _ in range(2):  # one retry corrects transmission errors
            try:
                if self._files.download(file, path) == sha256:
                    return
            except FileNotFoundError:
                raise RemoteError(f"{self.url}/{file} is missing: push the shards again") from None
        raise RemoteError(
            f"{self.url}/{file} does not match its manifest: run `honeybee verify {self.url}` for details"
        )

    def _hold(self, path: Path) -> None:
        """Prevents all processes from removing a file, by a shared lock that is released when this process ends."""
        if path in self._held:
            self._held.move_to_end(path)
            return
        handle = self._lock_of(path, "use").open("wb")
        fcntl.flock(handle, fcntl.LOCK_SH)
        self._held[path] = handle
        while len(self._held) > max(self.hold, 1):
            self._held.popitem(last=False)[1].close()

    def _make_room(self, num_bytes: int) -> None:
        if self.limit_bytes is None:
            return
        with lock(self.directory / ".room.lock"):
            stats = [(path, path.stat()) for path in self.directory.glob("[!.]*.parquet")]
            total = num_bytes + sum(stat.st_size for _, stat in stats)
            for path, stat in sorted(stats, key=lambda each: each[1].st_mtime_ns):
                if total <= self.limit_bytes:
                    return
                with self._lock_of(path, "use").open("wb") as handle:
                    try:
                        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        continue
                    path.unlink(missing_ok=True)
                    total -= stat.st_size

    def _lock_of(self, path: Path, what: str) -> Path:
        return self.directory / f".{path.name}.{what}.lock"
