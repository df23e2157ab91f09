"""Reads and writes shards on remote storage: s3://, gs:// and any other file system of fsspec, or a local directory.

`push` copies a shards directory to a URL; `ShardCache` reads from a URL through a cache on a local disk. Recipes never
contain credentials or endpoints: they come from where fsspec's file systems look for them, such as AWS's environment
variables and files, or fsspec's own settings (`FSSPEC_S3_ENDPOINT_URL`).
"""

import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from pipelines.core.errors import ShardError
from pipelines.core.files import file_sha256
from pipelines.core.integrity import CONTENTS, MANIFEST, DamagedError, unseal
from pipelines.shards.card import CARD
from pipelines.shards.manifest import check_sizes, read_shards_manifest

_PIECE = 4 << 20  # bytes
_TRANSFERS = 4  # concurrent uploads


class RemoteError(ValueError):
    """Raised for shards at a URL that cannot be read or written, or that do not match their manifest."""


def is_url(where: str) -> bool:
    """Returns whether `where` is a URL and not a local path."""
    return "://" in where


def check_url(url: str) -> None:
    """Raises RemoteError unless it is a URL with a supported protocol; does not access the network."""
    if not is_url(url):
        raise RemoteError(f"{url} is not a URL such as s3://bucket/prefix or file:///directory")
    try:
        fsspec.get_filesystem_class(url.split("://")[0])
    except (ImportError, ValueError) as error:
        raise RemoteError(f"{url}: {error}") from None


def shards_url(remote: str, directory: Path) -> str:
    """Returns the URL of a store's shards directory below a recipe's `paths.remote`."""
    return f"{remote.rstrip('/')}/shards/{directory.resolve().name}"


@dataclass(frozen=True)
class ShardFiles:
    """The files in a directory or at a URL. Can be pickled."""

    where: str

    def manifest(self) -> Any:
        """Returns the manifest. Raises ShardError if it is missing or not as written, RemoteError if a URL cannot be
        read."""
        try:
            content = self.read(MANIFEST)
        except FileNotFoundError:
            hint = "; a pushed run stores its shards below it, in shards/FINGERPRINT" if is_url(self.where) else ""
            raise ShardError(f"{self.where} holds no finished shards: there is no {MANIFEST}{hint}") from None
        try:
            return unseal(content, f"{self.where.rstrip('/')}/{MANIFEST}")
        except DamagedError as error:
            raise ShardError(str(error)) from None

    def names(self) -> list[str]:
        file_system, root = self._location()
        with self._wrapped_errors(""):
            return sorted(path.rsplit("/", 1)[-1] for path in file_system.ls(root, detail=False, refresh=True))

    def read(self, name: str) -> bytes:
        file_system, root = self._location()
        with self._wrapped_errors(name):
            return file_system.cat_file(f"{root}/{name}")

    def sizes(self) -> dict[str, int]:
        """Returns file name → size; empty if the directory does not exist."""
        file_system, root = self._location()
        try:
            with self._wrapped_errors(""):
                entries = file_system.ls(root, detail=True, refresh=True)
        except FileNotFoundError:
            return {}
        return {entry["name"].rsplit("/", 1)[-1]: entry["size"] for entry in entries if entry["type"] == "file"}

    def sha256(self, name: str) -> str:
        """Returns the checksum of a file's bytes, which it reads."""
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
        """Yields a local path of the file, which is temporary for a URL. Raises FileNotFoundError."""
        if not is_url(self.where):
            yield Path(self.where) / name
            return
        with tempfile.TemporaryDirectory(prefix="honeybee-") as scratch:
            path = Path(scratch) / name
            self.download(name, path)
            yield path

    def put(self, path: Path) -> None:
        file_system, root = self._location()
        with self._wrapped_errors(path.name):
            try:
                file_system.makedirs(root, exist_ok=True)
                file_system.put_file(str(path), f"{root}/{path.name}")
            except FileNotFoundError as error:
                raise RemoteError(f"{self.where}: cannot be written: {error}") from None

    def remove(self, name: str) -> None:
        file_system, root = self._location()
        with self._wrapped_errors(name):
            file_system.rm_file(f"{root}/{name}")

    def _read_pieces(self, name: str, take: Callable[[bytes], object]) -> None:
        file_system, root = self._location()
        options = {"block_size": _PIECE, "cache_type": "readahead"}
        with self._wrapped_errors(name), file_system.open(f"{root}/{name}", "rb", **options) as file:
            while piece := file.read(_PIECE):
                take(piece)

    def _location(self) -> tuple[fsspec.AbstractFileSystem, str]:
        # Not cached here, because fsspec caches its file systems and creates new ones after a fork.
        if not is_url(self.where):
            return fsspec.filesystem("file"), str(Path(self.where).resolve())
        check_url(self.where)
        with self._wrapped_errors(""):
            file_system, root = fsspec.core.url_to_fs(self.where)
        return file_system, root.rstrip("/")

    @contextlib.contextmanager
    def _wrapped_errors(self, name: str) -> Iterator[None]:
        """Turns any error of a remote file system into a RemoteError that names the URL, except FileNotFoundError."""
        try:
            yield
        except (FileNotFoundError, RemoteError):
            raise
        except Exception as error:
            if not is_url(self.where) or (isinstance(error, OSError) and error.filename is not None):
                raise
            raise RemoteError(f"{self.where.rstrip('/')}/{name}: {type(error).__name__}: {error}") from error


def push(directory: Path, url: str, log: Callable[[str], None] = print) -> None:
    """Copies a complete shards directory to a URL.

    Every file is read back and verified. The manifest is written last, so that an incomplete push is not taken for a
    complete one. Remote files that already have the right bytes are kept; if the same manifest is there and all file
    sizes match, nothing is done. Raises ShardError if the directory is incomplete, RemoteError if the URL holds
    different shards or cannot be written."""
    check_url(url)
    manifest = read_shards_manifest(directory)
    check_sizes(directory, manifest)
    files, remote_sizes = ShardFiles(url), ShardFiles(url).sizes()
    named = [*manifest["shards"], manifest["lengths"]]
    wanted = {facts["file"]: (facts["num_bytes"], facts["sha256"]) for facts in named}
    if CARD in manifest[CONTENTS]:
        wanted[CARD] = tuple(manifest[CONTENTS][CARD])
    own = (directory / MANIFEST).read_bytes()
    others = sorted(name for name in remote_sizes if name.endswith(".parquet") and name not in wanted)
    if others or (MANIFEST in remote_sizes and files.read(MANIFEST) != own):
        example = f", such as {others[0]}" if others else ""
        raise RemoteError(f"{url} holds different shards{example}: use another URL, or remove them first")
    if MANIFEST in remote_sizes:
        if all(remote_sizes.get(name) == size for name, (size, _) in wanted.items()):
            log(f"{url}: already complete")
            return
        files.remove(MANIFEST)  # written again once all files are correct

    def upload(name: str) -> str:
        size, sha256 = wanted[name]
        if remote_sizes.get(name) == size and files.sha256(name) == sha256:
            return "already uploaded"
        if file_sha256(directory / name) != sha256:
            raise RemoteError(
                f"{directory / name} has changed since it was built: run `honeybee verify {directory}` for details"
            )
        files.put(directory / name)
        if files.sha256(name) != sha256:
            raise RemoteError(f"{url}/{name} differs from the file that was uploaded: push again")
        return f"{size:,} bytes uploaded"

    with ThreadPoolExecutor(_TRANSFERS) as pool:
        for number, (name, done) in enumerate(zip(wanted, pool.map(upload, wanted), strict=True)):
            log(f"{number + 1} of {len(wanted)} {name}: {done}")
    files.put(directory / MANIFEST)
    if files.read(MANIFEST) != own:
        raise RemoteError(f"{url}/{MANIFEST} differs from the file that was uploaded: push again")
    log(f"{url}: complete")
