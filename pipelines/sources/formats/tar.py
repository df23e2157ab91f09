"""Walks the headers of an uncompressed tar, about five times faster than `tarfile`: ustar, pax and GNU long names.

It finds only what a dataset needs, the offset and size of each member's data. Nothing is unpacked.
"""

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

from pipelines.sources.base import SourceError
from pipelines.sources.formats.open_file import OpenFile

BLOCK = 512
WINDOW = 16 * 1024  # bytes read at once: a header and the small members and headers that follow it
_MAX_EXTENSION = 1 << 20  # bytes of a pax or long-name header
_ZERO = bytes(BLOCK)
_ADLER = 65521


class Member(NamedTuple):
    name: str  # undecodable bytes are lone surrogates
    offset: int  # of its data, in bytes from the beginning of the tar
    size: int  # bytes
    is_file: bool  # a regular file, not a link, device or sparse file


class Tar(OpenFile):
    """An open tar. Raises SourceError, with file and byte offset, if it is damaged or incomplete."""

    def __init__(self, path: Path):
        super().__init__(path)
        if found := self.compression():
            raise SourceError(
                f"{path} is a tar compressed with {found[0]}: images are read from tars in place, so unpack the "
                f"compression once ({found[1]}) and keep the .tar"
            )
        self._size = os.fstat(self._file.fileno()).st_size
        self._start, self._window = 0, b""

    def read(self, offset: int, size: int) -> bytes:
        """Returns `size` bytes at `offset`. Raises SourceError if the file ends before them."""
        begin = offset - self._start
        if begin < 0 or begin + size > len(self._window):
            self._start, self._window = offset, os.pread(self._file.fileno(), max(size, WINDOW), offset)
            begin = 0
        data = self._window[begin : begin + size]
        if len(data) < size:
            self._fail(offset, "the file ends inside a member, so it is truncated")
        return data

    def members(self) -> Iterator[Member]:
        """Yields all members in order, except directories."""
        position = 0
        long_name: str | None = None
        long_size: int | None = None
        sparse = False
        while True:
            if position + BLOCK > self._size:
                self._fail(position, "the file ends without the end-of-archive block: it is truncated or not a tar")
            header = self.read(position, BLOCK)
            if header == _ZERO:
                return
            if _checksum(header) != (self._octal(position, header[148:156]) + 1) % _ADLER:
                self._fail(position, "this is not a tar header (wrong checksum): is the file an uncompressed tar?")
            kind, offset = header[156:157], position + BLOCK
            size = self._octal(position, header[124:136])
            if kind in b"xL" and not 0 <= size <= _MAX_EXTENSION:
                self._fail(position, f"an extended header has {size} bytes, more than {_MAX_EXTENSION}")
            if kind == b"x":
                records = self._pax(offset, self.read(offset, size))
                long_name = records.get("path", long_name)
                long_size = self._decimal(position, records["size"]) if "size" in records else long_size
                sparse = sparse or any(key.startswith("GNU.sparse") for key in records)
            elif kind == b"L":
                long_name = _decode(self.read(offset, size))
            elif kind == b"S":
                self._fail(position, "sparse members are not supported: rewrite the tar without them")
            elif kind not in b"gK":
                size = size if long_size is None else long_size
                size = 0 if kind in b"123456" else size  # links, devices and directories have no data
                if offset + size > self._size:
                    self._fail(position, f"a member of {size} bytes extends past the end: the file is truncated")
                name = long_name or _name(header)
                if kind != b"5" and not name.endswith("/"):
                    yield Member(name, offset, size, kind in b"0\x007" and not sparse)
                long_name, long_size, sparse = None, None, False
            position = offset + -(-size // BLOCK) * BLOCK

    def _pax(self, offset: int, data: bytes) -> dict[str, str]:
        records, at = {}, 0
        while at < len(data) and data[at]:
            space = data.find(b" ", at, at + 20)
            length = int(data[at:space]) if space > at and data[at:space].isdigit() else 0
            key, equals, value = data[space + 1 : at + length - 1].partition(b"=")
            if not length or not equals or data[at + length - 1 : at + length] != b"\n":
                self._fail(offset + at, "the pax header is malformed")
            records[_decode(key)] = _decode(value)
            at += length
        return records

    def _octal(self, position: int, digits: bytes) -> int:
        if digits[0] == 0x80:  # GNU: base 256
            return int.from_bytes(digits[1:], "big")
        number = digits.split(b"\0", 1)[0].strip(b" ")
        if number.strip(b"01234567"):
            self._fail(position, f"the tar header has the invalid number {digits!r}")
        return int(number or b"0", 8)

    def _decimal(self, position: int, digits: str) -> int:
        if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
            self._fail(position, f"the pax header has the invalid size {digits!r}")
        return int(digits)

    def _fail(self, position: int, message: str) -> NoReturn:
        raise SourceError(f"{self._path}: byte {position}: {message}. Fetch the file again.")


def _checksum(header: bytes) -> int:
    """Returns 1 + the sum of all bytes modulo 65521, the low half of an Adler-32. Checksum bytes count as spaces."""
    return zlib.adler32(header[:148] + b" " * 8 + header[156:]) & 0xFFFF


def _name(header: bytes) -> str:
    name = _decode(header[:100])
    prefix = _decode(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _decode(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
