"""Image references: read safely below an image root, and decoded, measured and hashed once.

A reference is a path relative to the image root (`train2017/000000000009.jpg`), a byte range of a tar
(`00000.tar#<offset>:<size>`; tars are never unpacked), or a cell of a Parquet or Arrow file by column and row
(`data/train-0.parquet#<column>:<row>`, or `…:<row>[<element>]` if the cell is a list). A cell that holds a path
instead of bytes refers to the file at that path.
"""

import errno
import hashlib
import io
import logging
import os
import re
import stat
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from pipelines.image_cells import Cell, Cells
from pipelines.image_error import ImageRefError
from pipelines.perceptual import perceptual_hash
from pipelines.schema import IMAGES

log = logging.getLogger(__name__)

MAX_PIXELS = 178_956_970 // 2  # half the number at which Pillow raises DecompressionBombError
MAX_BYTES = 256 << 20  # of an encoded image
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # others are rare, and some Pillow decoders run external programs
_ORIENTATION = 0x0112  # the EXIF tag
_TAR_MEMBER = re.compile(r"(.+\.tar)#(\d{1,18}):(\d{1,18})", re.DOTALL)
_CELL = re.compile(r"(.+\.(?:parquet|arrow))#(.+):(\d{1,18})(?:\[(\d{1,9})\])?", re.DOTALL)
_CHUNK = 64  # images per task of a thread
_LOG_EVERY = 20_000  # images


def is_cell(file: str, column: str) -> bool:
    """Returns whether `<file>#<column>:<row>` parses as a reference to that column of that file."""
    match = _CELL.fullmatch(f"{file}#{column}:0")
    return match is not None and (match[1], match[2]) == (file, column)


class Location(NamedTuple):
    """Where an image's bytes are stored."""

    path: str  # real path, without symbolic links
    offset: int
    size: int
    identity: str  # stays the same while the file is unchanged: real path|size|mtime_ns, plus |position in a container
    cell: Cell | None = None  # set for a Parquet or Arrow file, for which offset and size are meaningless


class ImageRoot:
    """The images below one directory. No reference can escape it, not even through a symbolic link.

    Caches the locations of directories, tars and tables, so create a new instance for every pass over the images.
    Threads may share one. Raises FileNotFoundError if the directory does not exist.
    """

    def __init__(self, root: Path):
        if not root.is_dir():
            raise FileNotFoundError(f"image root {root} is not a directory: correct the recipe's `images`")
        self._root = os.path.realpath(root)
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
        """Returns the encoded bytes. Raises ImageRefError as `locate` does, or image_too_large or image_corrupt."""
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
        descriptor = os.open(location.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            data = os.pread(descriptor, location.size, location.offset)
        finally:
            os.close(descriptor)
        if len(data) < location.size:
            raise ImageRefError("image_corrupt", f"only {len(data)} of {location.size} bytes could be read")
        return data

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
            path = f"{self._directory(directory)}/{base}"
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
            real = os.path.realpath(f"{self._root}/{name}", strict=True)
            self._directories[name] = self._checked(real, name)
        return self._directories[name]

    def _checked(self, real: str, name: str) -> str:
        if real != self._root and not real.startswith(self._inside):
            raise ImageRefError("image_outside_root", f"{name!r} is a symbolic link to outside the image root")
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
    return f"{printable}|{status.st_size}|{status.st_mtime_ns}"


def read_image_bytes(root: Path, image: str) -> bytes:
    """Returns the encoded bytes of one image. For many images, reuse an ImageRoot. Raises what ImageRoot raises."""
    return ImageRoot(root).read(image)


def decode(data: bytes) -> Image.Image:
    """Fully decodes an image (the first frame of an animation) in the file's own mode and orientation.

    Raises ImageRefError: image_corrupt (also if truncated), image_too_large (before any pixel is decoded).
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise RuntimeError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is on, so truncated images would be accepted: switch it off"
        )
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ImageRefError("image_too_large", f"{width} by {height} pixels, more than the limit of {MAX_PIXELS}")
        image.load()
        return image
    except (ImageRefError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageRefError("image_too_large", str(error)) from None
    except UnidentifiedImageError:
        raise ImageRefError("image_corrupt", f"{len(data)} bytes in none of the formats {', '.join(FORMATS)}") from None
    except Exception as error:  # decoders raise almost any exception on corrupt data
        raise ImageRefError("image_corrupt", f"{type(error).__name__}: {error}") from None


def orientation(data: bytes) -> int:
    """Returns the EXIF orientation of an encoded image, 1 if upright. Reads only the header. Raises as Pillow does."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return image.getexif().get(_ORIENTATION, 1)


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts an image to RGB as displayed: EXIF orientation applied, transparency on white, 16 bits scaled to 8."""
    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion clips at 255
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray((grey // 257).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def measure(data: bytes) -> tuple[int, int, int | None]:
    """Fully decodes an image. Returns its width and height in pixels and its perceptual hash. Raises as `decode`."""
    image = decode(data)
    try:
        rgb = to_rgb(image)
    except Exception as error:  # EXIF data that cannot be parsed
        raise ImageRefError("image_corrupt", f"{type(error).__name__}: {error}") from None
    return *image.size, perceptual_hash(rgb)


def identities(root: Path, images: Iterable[str]) -> list[str | None]:
    """Returns each image's identity (see Location.identity) without opening its file, or None if there is no file."""
    image_root, names = ImageRoot(root), list(images)
    located = {image: _try(image_root.locate, image) for image in sorted(set(names), key=reading_order)}
    return [each.identity if isinstance(each, Location) else None for each in map(located.__getitem__, names)]


def images_table(
    root: Path, images: Iterable[str], known: pa.Table | None = None, threads: int | None = None
) -> pa.Table:
    """Measures images. Returns one row per distinct image, schema IMAGES, sorted by `image`; an unusable image has
    `reject` and `detail`.

    known: the concatenated tables of earlier passes, of any root or dataset, schema IMAGES. An image whose `identity`
    is in them is not reopened, since its real path, size and modification time have not changed. A changed file has a
    different identity and is measured again; a missing file has none and is looked up again.
    threads: the number of decoding threads; None uses one per core.
    Raises FileNotFoundError without a root, and PermissionError or another OSError that no reference causes.
    """
    names = sorted(set(images), key=reading_order)
    image_root = ImageRoot(root)
    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        located = list(_map(pool, lambda image: _try(image_root.locate, image), names))
        identities = pa.array([each.identity if isinstance(each, Location) else None for each in located], pa.string())
        seen = _lookup(identities, known)
        new = [i for i, index in enumerate(seen.to_pylist()) if index is None]
        if known is not None:
            log.info("images: %d of %d were measured before", len(names) - len(new), len(names))
        rows = []
        for row in _map(pool, lambda i: _row(image_root, names[i], located[i]), new):
            rows.append(row)
            if len(rows) % _LOG_EVERY == 0:
                log.info("images: %d of %d measured", len(rows), len(new))
    table = pa.Table.from_pylist(rows, schema=IMAGES)
    if known is not None and len(new) < len(names):
        old = known.select(IMAGES.names).take(seen.drop_null())
        renamed = pa.array(names, pa.string()).filter(seen.is_valid())
        table = pa.concat_tables([table, old.set_column(0, IMAGES.field("image"), renamed).cast(IMAGES)])
    return table.sort_by("image").combine_chunks()


def _lookup(identities: pa.Array, known: pa.Table | None) -> pa.Array:
    """Returns the row of each identity in `known`, or null."""
    if known is None:
        return pa.nulls(len(identities), pa.int32())
    return pc.index_in(identities, value_set=known["identity"].combine_chunks(), skip_nulls=True)


def _try(locate: Callable[[str], Location], image: str) -> Location | ImageRefError:
    try:
        return locate(image)
    except ImageRefError as error:
        return error


def _row(image_root: ImageRoot, image: str, location: Location | ImageRefError) -> dict[str, Any]:
    row: dict[str, Any] = {"image": image}
    try:
        if isinstance(location, ImageRefError):
            raise location
        row["identity"] = location.identity
        data = image_root.read_at(location)
        row["num_bytes"], row["sha256"] = len(data), hashlib.sha256(data).hexdigest()
        row["width"], row["height"], row["phash"] = measure(data)
    except ImageRefError as error:
        row["reject"], row["detail"] = error.reason, error.detail
    return row


def _map(pool: ThreadPoolExecutor, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterable[Any]:
    """`pool.map` over chunks, since dispatching a task costs more than decoding a small image."""
    chunks = (items[i : i + _CHUNK] for i in range(0, len(items), _CHUNK))
    for results in pool.map(lambda chunk: [function(item) for item in chunk], chunks):
        yield from results
