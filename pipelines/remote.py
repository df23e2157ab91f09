"""Shards on other machines' disks: s3://, gs:// and whatever else fsspec knows, a local directory among them.

`push` copies a shards directory to a URL; `LocalCopy` reads from there through a cache on a local disk. Credentials and
endpoints are never in a recipe: they come from where fsspec's file systems look for them, such as AWS's environment
variables and files, or fsspec's own (`FSSPEC_S3_ENDPOINT_URL`).
"""

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import fsspec

from pipelines.card import CARD
from pipelines.shard_error import ShardError
from pipelines.shards import check_format, check_sizes, read_shards_manifest, says_if_full
from pipelines.store import MANIFEST, file_sha256, lock, whole_file

_PIECE = 4 << 20  # bytes
_TRANSFERS = 4  # files on their way at once


class RemoteError(ValueError):
    """Shards at a URL that cannot be written or read, or are not what their manifest says."""


def is_url(where: str) -> bool:
    return "://" in where


def check_url(url: str) -> None:
    """Raises RemoteError unless it is a URL of a kind that can be used here; asks nobody."""
    if not is_url(url):
        raise RemoteError(f"{url} is no URL such as s3://bucket/prefix or file:///directory")
    try:
        fsspec.get_filesystem_class(url.split("://")[0])
    except (ImportError, ValueError) as error:
        raise RemoteError(f"{url}: {error}") from None


def shards_url(remote: str, directory: Path) -> str:
    """Where the shards of a store's directory go below a recipe's `paths.remote`."""
    return f"{remote.rstrip('/')}/shards/{directory.resolve().name}"


@dataclass(frozen=True)
class Files:
    """The files of a directory, or at a URL. May be sent to other processes."""

    where: str

    def manifest(self) -> Any:
        """Raises ShardError where there is none, or it is no JSON; RemoteError for a URL that cannot be read."""
        try:
            content = self.read(MANIFEST)
        except FileNotFoundError:
            below = "; those of a pushed run lie below it, at shards/FINGERPRINT" if is_url(self.where) else ""
            raise ShardError(f"{self.where} holds no finished shards: there is no {MANIFEST}{below}") from None
        try:
            return json.loads(content)
        except ValueError as error:
            raise ShardError(f"{self.where}/{MANIFEST} is no JSON: {error}") from None

    def names(self) -> list[str]:
        file_system, root = self._place()
        with self._told(""):
            return sorted(path.rsplit("/", 1)[-1] for path in file_system.ls(root, detail=False, refresh=True))

    def read(self, name: str) -> bytes:
        file_system, root = self._place()
        with self._told(name):
            return file_system.cat_file(f"{root}/{name}")

    def sizes(self) -> dict[str, int]:
        """Of the files that are there, by name; none where there is no such directory."""
        file_system, root = self._place()
        try:
            with self._told(""):
                entries = file_system.ls(root, detail=True, refresh=True)
        except FileNotFoundError:
            return {}
        return {entry["name"].rsplit("/", 1)[-1]: entry["size"] for entry in entries if entry["type"] == "file"}

    def sha256(self, name: str) -> str:
        """Of the bytes, read from there."""
        digest = hashlib.sha256()
        self._read_pieces(name, digest.update)
        return digest.hexdigest()

    def download(self, name: str, path: Path) -> str:
        """Writes the file to `path`; returns its SHA-256."""
        digest = hashlib.sha256()
        with path.open("wb") as out:

            def take(piece: bytes) -> None:
                digest.update(piece)
                out.write(piece)

            self._read_pieces(name, take)
        return digest.hexdigest()

    @contextlib.contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """The file as one on a local disk, for as long as the block runs. Raises FileNotFoundError."""
        if not is_url(self.where):
            yield Path(self.where) / name
            return
        with tempfile.TemporaryDirectory(prefix="honeybee-") as scratch:
            path = Path(scratch) / name
            self.download(name, path)
            yield path

    def put(self, path: Path) -> None:
        file_system, root = self._place()
        with self._told(path.name):
            try:
                file_system.makedirs(root, exist_ok=True)
                file_system.put_file(str(path), f"{root}/{path.name}")
            except FileNotFoundError as error:
                raise RemoteError(f"{self.where}: cannot be written: {error}") from None

    def remove(self, name: str) -> None:
        file_system, root = self._place()
        with self._told(name):
            file_system.rm_file(f"{root}/{name}")

    def _read_pieces(self, name: str, take: Callable[[bytes], object]) -> None:
        file_system, root = self._place()
        options = {"block_size": _PIECE, "cache_type": "readahead"}
        with self._told(name), file_system.open(f"{root}/{name}", "rb", **options) as file:
            while piece := file.read(_PIECE):
                take(piece)

    def _place(self) -> tuple[fsspec.AbstractFileSystem, str]:
        # Not kept: fsspec knows its own file systems again, and gives a forked process new ones.
        if not is_url(self.where):
            return fsspec.filesystem("file"), str(Path(self.where).resolve())
        check_url(self.where)
        with self._told(""):
            file_system, root = fsspec.core.url_to_fs(self.where)
        return file_system, root.rstrip("/")

    @contextlib.contextmanager
    def _told(self, name: str) -> Iterator[None]:
        """Errors of a URL, whatever a file system raises, as RemoteErrors that name it."""
        try:
            yield
        except (FileNotFoundError, RemoteError):
            raise
        except Exception as error:
            if not is_url(self.where) or (isinstance(error, OSError) and error.filename is not None):
                raise
            raise RemoteError(f"{self.where.rstrip('/')}/{name}: {type(error).__name__}: {error}") from error


def push(directory: Path, url: str, log: Callable[[str], None] = print) -> None:
    """Copies a whole shards directory to a URL. Every file is read back and compared; the manifest is written last, so
    that what is not whole does not look so. Files that are there already with the right bytes are kept; where the
    same manifest is there with files of the right sizes, nothing is done. Raises ShardError for a directory that is
    not whole, RemoteError where the URL holds other shards or cannot be written."""
    check_url(url)
    manifest = read_shards_manifest(directory)
    check_sizes(directory, manifest)
    files, there = Files(url), Files(url).sizes()
    named = [*manifest["shards"], manifest["lengths"]]
    wanted = {facts["file"]: (facts["num_bytes"], facts["sha256"]) for facts in named}
    if (directory / CARD).is_file():
        wanted[CARD] = ((directory / CARD).stat().st_size, file_sha256(directory / CARD))
    own = (directory / MANIFEST).read_bytes()
    others = sorted(name for name in there if name.endswith(".parquet") and name not in wanted)
    if others or (MANIFEST in there and files.read(MANIFEST) != own):
        example = f", such as {others[0]}" if others else ""
        raise RemoteError(f"{url} holds other shards{example}: give another URL, or remove them first")
    if MANIFEST in there:
        if all(there.get(name) == size for name, (size, _) in wanted.items()):
            log(f"{url}: there already")
            return
        files.remove(MANIFEST)  # until all files are right

    def bring(name: str) -> str:
        size, sha256 = wanted[name]
        if there.get(name) == size and files.sha256(name) == sha256:
            return "there already"
        if file_sha256(directory / name) != sha256 and name != CARD:
            raise RemoteError(f"{directory / name} is not what was built: `honeybee verify {directory}` tells more")
        files.put(directory / name)
        if files.sha256(name) != sha256:
            raise RemoteError(f"{url}/{name} is not what was sent: push again")
        return f"{size:,} bytes sent"

    with ThreadPoolExecutor(_TRANSFERS) as pool:
        for number, (name, done) in enumerate(zip(wanted, pool.map(bring, wanted), strict=True)):
            log(f"{number + 1} of {len(wanted)} {name}: {done}")
    files.put(directory / MANIFEST)
    if files.read(MANIFEST) != own:
        raise RemoteError(f"{url}/{MANIFEST} is not what was sent: push again")
    log(f"{url}: whole")


class LocalCopy:
    """The files of shards at a URL, brought to a directory on a local disk as they are asked for.

        copy = LocalCopy("s3://bucket/shards/0123456789abcdef", Path("/local/cache"), limit_bytes=100 << 30)
        manifest = copy.manifest                    # of the URL; its format is checked
        path = copy.fetch("shard-00000-of-00042.parquet")

    `fetch` compares the SHA-256 of what it brings with the manifest. Files have their sum in their name, so several
    runs and URLs may share a directory, and so may any number of processes of one machine: each file is brought
    once, while the others wait for it. Beyond `limit_bytes` (None: no limit) the files that were not asked for
    longest are removed, except those in use: the last `hold` files that any LocalCopy has fetched. So a path is good
    until its own LocalCopy has fetched `hold` others, or is closed; a file that is already open stays readable
    anyway. Room for all files in use is needed, limit or not. Make one in every process, before or after a fork.
    """

    def __init__(self, url: str, directory: Path, limit_bytes: int | None = None, hold: int = 4):
        """Raises ShardError where there are no shards of this format, RemoteError for a URL that cannot be read
        and for a directory that cannot be written."""
        self.url, self.directory, self.limit_bytes, self.hold = url.rstrip("/"), directory, limit_bytes, hold
        self._files = Files(self.url)
        self.manifest: dict[str, Any] = self._files.manifest()
        check_format(self.manifest, url)
        named = [*self.manifest["shards"], self.manifest["lengths"]]
        self._facts = {facts["file"]: facts for facts in named}
        self._held: OrderedDict[Path, BinaryIO] = OrderedDict()
        try:
            directory.mkdir(parents=True, exist_ok=True)
            (directory / ".room.lock").touch()
        except OSError as error:
            raise RemoteError(f"{directory} cannot hold the local copy of {url}: {error}: give another") from None

    def fetch(self, file: str) -> Path:
        """Where the file is on the local disk. file: as the manifest names it. Raises KeyError for one that it does not
        name, RemoteError for one that is not there or not what the manifest says, ShardError for a full disk."""
        facts = self._facts[file]
        path = self.directory / f"{facts['sha256'][:32]}-{file}"
        self._hold(path)
        with lock(self._lock_of(path, "fetch")):
            if not path.is_file() or path.stat().st_size != facts["num_bytes"]:
                self._make_room(facts["num_bytes"])
                with says_if_full(path), whole_file(path) as partial:
                    self._download(file, facts["sha256"], partial)
        os.utime(path)  # the last use
        return path

    def close(self) -> None:
        """Lets go of all files."""
        while self._held:
            self._held.popitem()[1].close()

    def _download(self, file: str, sha256: str, path: Path) -> None:
        for _ in range(2):  # bytes that go wrong on the way come right the second time
            try:
                if self._files.download(file, path) == sha256:
                    return
            except FileNotFoundError:
                raise RemoteError(f"{self.url}/{file} is missing: push the shards again") from None
        raise RemoteError(f"{self.url}/{file} is not what its manifest says: `honeybee verify {self.url}` tells more")

    def _hold(self, path: Path) -> None:
        """Keeps a file from being removed by any process, as a shared lock that ends with this process."""
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
