"""Image references: a path below a root, a member of a tar, or a cell of a table, resolved and read safely."""

import errno
import os
import re
import stat
import unicodedata
from pathlib import Path
from typing import Literal, NamedTuple

from pipelines.core.errors import ImageRefError
from pipelines.images.cells import Cell, Cells
from pipelines.images.read_range import read_range

Links = Literal["follow", "refuse"]
MAX_BYTES = 256 << 20  # of an encoded image
_TAR_MEMBER = re.compile(r"(.+\.tar)#(\d{1,18}):(\d{1,18})", re.DOTALL)
_CELL = re.compile(r"(.+\.(?:parquet|arrow))#(.+):(\d{1,18})(?:\[(\d{1,9})\])?", re.DOTALL)


def is_cell(file: str, column: str) -> bool:
    """Returns whether `<file>#<column>:<row>` parses as a reference to that column of that file."""
    match = _CELL.fullmatch(f"{file}#{column}:0")
    return match is not None and (match[1], match[2]) == (file, column)


class Location(NamedTuple):
    """Where an image's bytes are stored."""

    path: str  # real path, without symbolic links
    offset: int
    size: int
    identity: str  # while the file is unchanged: real path|size|times|inode, plus |position in a container
    cell: Cell | None = None  # set for a Parquet or Arrow file, for which offset and size are meaningless


class ImageRoot:
    """The images below one directory. No reference can escape it: absolute paths and '..' are refused.

    links: a symbolic link that lies on the disk belongs to the owner of the data and is followed wherever it leads, or
    `refuse`: an image that is, through links, outside the directory is refused. A name is found in either Unicode
    normal form (NFC and NFD), since file systems and archives convert one to the other.
    Caches the locations of directories, tars and tables, so create a new instance for every pass over the images.
    Threads may share one. Raises FileNotFoundError if the directory does not exist.
    """

    def __init__(self, root: Path, links: Links = "follow"):
        if not root.is_dir():
            raise FileNotFoundError(f"image root {root} is not a directory: correct the recipe's `images`")
        self._root = os.path.realpath(root)
        self._links = links
        self._normalised: dict[str, dict[str, list[str]]] = {}  # directory → NFC name → names on the disk
        self._inside = self._root.rstrip("/") + "/"
        self._directories: dict[str, str] = {}
        self._holders: dict[str, tuple[str, os.stat_result]] = {}  # containers: tars and tables
        self._cells = Cells()

    def locate(self, image: str) -> Location:
        """Returns the location of an image. Raises ImageRefError: image_missing, image_outside_root,
        image_bad_reference, or image_corrupt for a damaged table."""
        if member := _TAR_MEMBER.fullmatch(image):
            tar, offset, size = member[1], int(member[2]), int(member[3])
            path, status = self._holder(tar)
            if offset + size > status.st_size:
                detail = f"{tar} has only {status.st_size} bytes, so there is no member at {offset}:{size}"
                raise ImageRefError("image_missing", detail)
            return Location(path, offset, size, f"{_identity(path, status)}|{offset}:{size}")
        if match := _CELL.fullmatch(image):
            cell = Cell(match[2], int(match[3]), None if match[4] is None else int(match[4]))
            path, status = self._holder(match[1])
            return Location(path, 0, 0, f"{_identity(path, status)}|{cell}{self._linked_identity(path, cell)}", cell)
        path, status = self._file(image)
        return Location(path, 0, status.st_size, _identity(path, status))

    def read(self, image: str) -> bytes:
        """Returns the encoded bytes. Raises ImageRefError as `locate` does, or image_too_large or image_corrupt, and
        OSError, with the file's name, if the disk does not deliver the bytes, which says nothing about the image."""
        return self.read_at(self.locate(image))

    def read_at(self, location: Location) -> bytes:
        if location.cell is not None:
            data = self._cells.read(location.path, location.cell)
            if isinstance(data, str):
                path, status = self._file(data)
                return self.read_at(Location(path, 0, status.st_size, ""))
            _check_size(len(data))
            return data
        _check_size(location.size)
        return read_range(location.path, location.offset, location.size)

    def _linked_identity(self, path: str, cell: Cell) -> str:
        """Returns the identity of the file that a cell names, if any, since that file may hold the image's bytes."""
        name = self._cells.path(path, cell)
        try:
            return "" if name is None else f"|{_identity(*self._file(name))}"
        except ImageRefError:
            return ""

    def _holder(self, name: str) -> tuple[str, os.stat_result]:
        if name not in self._holders:
            self._holders[name] = self._file(name)
        return self._holders[name]

    def _file(self, name: str) -> tuple[str, os.stat_result]:
        """Returns the real path and status of a regular file."""
        if not name or "\0" in name:
            raise ImageRefError("image_bad_reference", f"{name!r} is not a file name")
        if name.startswith("/") or ".." in name.split("/"):
            raise ImageRefError("image_outside_root", f"{name!r} is absolute or contains '..'")
        try:
            directory, base = os.path.split(name)
            path = self._entry(self._directory(directory), base)
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                path = self._checked(os.path.realpath(path, strict=True), name)
                status = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            raise ImageRefError("image_missing", f"there is no {name!r}") from None
        except (OSError, UnicodeEncodeError) as error:
            if isinstance(error, OSError) and error.errno not in (errno.ENAMETOOLONG, errno.ELOOP):
                raise  # not the reference's fault: permissions or an I/O error
            raise ImageRefError("image_bad_reference", f"{name[:80]!r}: {error.args[-1]}") from None
        if not stat.S_ISREG(status.st_mode):
            raise ImageRefError("image_missing", f"{name!r} is not a regular file")
        return path, status

    def _directory(self, name: str) -> str:
        if name not in self._directories:
            real = self._root
            for part in filter(None, name.split("/")):
                real = self._checked(os.path.realpath(self._entry(real, part), strict=True), name)
            self._directories[name] = real
        return self._directories[name]

    def _entry(self, directory: str, name: str) -> str:
        """Returns the path of an entry of a directory, in the Unicode normal form in which it lies on the disk."""
        path = f"{directory}/{name}"
        if name.isascii() or os.path.lexists(path):
            return path
        if directory not in self._normalised:
            names: dict[str, list[str]] = {}
            for entry in Path(directory).iterdir():
                names.setdefault(unicodedata.normalize("NFC", entry.name), []).append(entry.name)
            self._normalised[directory] = names
        found = self._normalised[directory].get(unicodedata.normalize("NFC", name), [name])
        if len(found) > 1:
            raise ImageRefError("image_bad_reference", f"{name!r} matches several files: {', '.join(map(repr, found))}")
        return f"{directory}/{found[0]}"

    def _checked(self, real: str, name: str) -> str:
        if self._links == "follow":
            return real
        if real != self._root and not real.startswith(self._inside):
            raise ImageRefError(
                "image_outside_root", f"{name!r} is a symbolic link to outside the image root (image_links: refuse)"
            )
        return real


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise ImageRefError("image_too_large", f"{size} bytes, more than the limit of {MAX_BYTES}")


def reading_order(image: str) -> tuple[str, int]:
    """Sort key that orders references by file and position, so that each file is read sequentially."""
    match = _TAR_MEMBER.fullmatch(image) or _CELL.fullmatch(image)
    if match is None:
        return image, 0
    return match[1], int(match[3 if match.re is _CELL else 2])


def _identity(path: str, status: os.stat_result) -> str:
    printable = path.encode("utf-8", "backslashreplace").decode()  # Arrow strings must be valid UTF-8
    return f"{printable}|{status.st_size}|{status.st_mtime_ns}|{status.st_ctime_ns}|{status.st_ino}"
