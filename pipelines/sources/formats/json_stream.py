"""Reads large monolithic JSON files incrementally, with memory bounded by the largest element.

The C scanner of the standard library parses one element at a time from a sliding window of text. If the window ends
inside an element, the element is parsed again from a longer window. Bytes that are not UTF-8 become lone surrogates,
so that only the row that contains them is lost (`fields.utf8`). An element that cannot be used for itself (too long,
nested too deeply, a huge integer, a duplicate key) is read past and becomes a Reject. Files may be gzipped.
"""

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from pipelines.sources.base import SourceError
from pipelines.sources.fields import Reject, show
from pipelines.sources.formats.open_file import OpenFile

WINDOW = 1 << 20  # bytes read at a time
MAX_ELEMENT = 16 << 20  # characters of one array element or member value
_NUMBER_END = 4  # a number that ends this close to the window's end may continue after it
_SPACE = re.compile(r"[ \t\n\r]*")
_UNENDED = 16  # an error that close to the window's end may only mean that the window ends inside a token
_STRUCTURE = re.compile(r'["\[\]{}]')  # outside strings
_SCALAR_END = re.compile(r"[ \t\n\r,\]}]")
_IN_STRING = re.compile(r'(?:[^"\\]++|\\.)*+', re.DOTALL)  # up to the closing quote, or to a backslash at the end
_COMPRESSED = ("", ".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip")  # of which gzip is read and the others are errors
_COMMA = re.compile(r"[ \t\n\r]*,[ \t\n\r]*")


def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An `object_pairs_hook` that raises Reject, duplicate_key, where the last value would silently win."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise Reject("duplicate_key", f"the key {show(next(k for k in keys if keys.count(k) > 1))} appears twice")
    return found


def patterns(*globs: str) -> tuple[str, ...]:
    """Returns the globs of JSON files and of the same files under the usual suffixes of compressed files."""
    return tuple(f"{each}{suffix}" for each in globs for suffix in _COMPRESSED)


def array(path: Path, *keys: str) -> Iterator[Any]:
    """Yields the elements of the array at `keys`, a path of object keys (none: the file is the array), with a Reject
    for each that cannot be used. Raises SourceError."""
    with JsonStream(path) as stream:
        yield from stream.at(keys, stream.elements())


def members(path: Path, *keys: str) -> Iterator[tuple[str, Any]]:
    """Yields (key, value) of the object at `keys`, in file order, including repeated keys. Raises SourceError."""
    with JsonStream(path) as stream:
        yield from stream.at(keys, stream.members())


def lines(path: Path) -> Iterator[Any]:
    """Yields the values of a JSON Lines file; blank lines are skipped. Raises SourceError."""
    with JsonStream(path) as stream:
        yield from stream.values()


def records(path: Path) -> Iterator[Any]:
    """Yields the elements of a file that is one array, or the values of any other file as JSON Lines.
    Raises SourceError."""
    with JsonStream(path) as stream:
        first = stream.peek()
        if not first:
            raise SourceError(f"{path} is empty: fetch the file again, or remove it")
        if first == "[":
            yield from stream.at((), stream.elements())
        else:
            yield from stream.values()


class JsonStream(OpenFile):
    """A cursor over one JSON file. Raises SourceError with line, column and character for any error in its content."""

    def __init__(self, path: Path):
        super().__init__(path)
        self._bytes: io.RawIOBase | gzip.GzipFile = self._file
        if found := self.compression():
            if found[0] != "gzip":
                raise SourceError(f"{path} is compressed with {found[0]}: unpack it first ({found[1]})")
            self._bytes = gzip.GzipFile(fileobj=self._file)
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")(errors="surrogateescape")
        self._scan = json.JSONDecoder(object_pairs_hook=object_of).raw_decode
        self._text, self._pos = "", 0  # the window, and the cursor in it
        self._ended = False
        # Counts of the dropped text before the window: characters, lines, and characters of the window's first line.
        self._chars, self._lines, self._column = 0, 0, 0

    def peek(self) -> str:
        """Returns the next character that is not white space, or "" at the end of the file."""
        while True:
            match = _SPACE.match(self._text, self._pos)
            assert match  # the pattern matches the empty string
            self._pos = match.end()
            if self._pos < len(self._text):
                return self._text[self._pos]
            if not self._more():
                return ""

    def value(self) -> Any:
        """Returns the next complete value, or a Reject: nested_too_deep, number_too_long, duplicate_key,
        row_too_large."""
        self.peek()
        while True:
            try:
                value, end = self._scan(self._text, self._pos)
            except json.JSONDecodeError as error:
                incomplete = error.msg.startswith("Unterminated string") or error.pos + _UNENDED > len(self._text)
                if not self._ended and incomplete and len(self._text) - self._pos > MAX_ELEMENT:
                    return self._rejected("row_too_large", f"it has more than {MAX_ELEMENT:,} characters")
                if incomplete and self._more():
                    continue
                self._fail(error.msg, error.pos)
            except RecursionError:
                return self._rejected("nested_too_deep", "its arrays or objects are nested too deeply")
            except Reject as reject:
                return self._rejected(reject.reason, reject.detail)
            except ValueError as error:
                return self._rejected("number_too_long", str(error))
            if len(self._text) - end < _NUMBER_END and self._more():
                continue
            self._pos = end
            return value

    def _rejected(self, reason: str, detail: str) -> Reject:
        """Moves past the value that begins here, by its brackets and quotes and with a bounded window."""
        position = self._position(self._pos)
        if self._text[self._pos] not in '"[{':
            while not (found := _SCALAR_END.search(self._text, self._pos)) and self._consume():
                pass
            self._pos = found.start() if found else self._pos
        else:
            depth = 0
            while True:
                while not (found := _STRUCTURE.search(self._text, self._pos)):
                    if not self._consume():
                        self._fail("Expecting the end of the value")
                self._pos = found.end()
                if found[0] == '"':
                    self._skip_string()
                else:
                    depth += 1 if found[0] in "[{" else -1
                if not depth:
                    break
        return Reject(reason, f"the row at {position}: {detail}")

    def _consume(self) -> bool:
        self._pos = len(self._text)
        return self._more()

    def _skip_string(self) -> None:
        """Moves past the string whose opening quote was just read."""
        while True:
            match = _IN_STRING.match(self._text, self._pos)
            assert match
            self._pos = match.end()
            if self._text[self._pos : self._pos + 1] == '"':
                self._pos += 1
                return
            if not self._more():
                self._fail("Unterminated string")

    def values(self) -> Iterator[Any]:
        """Yields all values from here to the end of the file."""
        while self.peek():
            yield self.value()

    def elements(self) -> Iterator[Any]:
        """Yields the elements of the array that begins here."""
        self._expect("[")
        if self._skip_if("]"):
            return
        scan, comma = self._scan, _COMMA.match
        while True:
            # Fast path, equivalent to `yield self.value()` and a comma, if the window contains both.
            text = self._text
            try:
                value, end = scan(text, self._pos)
                match = comma(text, end)
            except (ValueError, RecursionError, Reject):
                match = None
            if match and match.end() < len(text):
                self._pos = match.end()
                yield value
                continue
            yield self.value()
            if self._skip_if("]"):
                return
            self._expect(",")
            self.peek()

    def members(self) -> Iterator[tuple[str, Any]]:
        """Yields (key, value) of the object that begins here."""
        for key in self.keys():
            yield key, self.value()

    def keys(self) -> Iterator[str]:
        """Yields the keys of the object that begins here; the caller must consume each value before the next key."""
        self._expect("{")
        if self._skip_if("}"):
            return
        while True:
            if self.peek() != '"':
                self._fail("Expecting a key in double quotes")
            key = self.value()
            if isinstance(key, Reject):
                self._fail(key.detail)
            self._expect(":")
            yield key
            if self._skip_if("}"):
                return
            self._expect(",")

    def skip(self) -> None:
        """Skips the next value; an array or object element by element, to bound memory."""
        if self.peek() == "[":
            for _ in self.elements():
                pass
        elif self.peek() == "{":
            for _ in self.members():
                pass
        else:
            self.value()

    def at(self, keys: tuple[str, ...], content: Iterator[Any]) -> Iterator[Any]:
        """Moves to the value at `keys`, yields `content`, and reads on to check that the rest of the file is valid."""
        yield from self._below(keys, content)
        if self.peek():
            self._fail("Extra data after the end of the JSON value")

    def _below(self, keys: tuple[str, ...], content: Iterator[Any]) -> Iterator[Any]:
        if not keys:
            yield from content
            return
        found = False
        for key in self.keys():
            if key == keys[0]:
                if found:
                    self._fail(f"Duplicate key {key!r}")
                found = True
                yield from self._below(keys[1:], content)
            else:
                self.skip()
        if not found:
            raise SourceError(f"{self._path} has no {keys[0]!r} at the expected position: is it the official file?")

    def _skip_if(self, character: str) -> bool:
        found = self.peek() == character
        self._pos += found
        return found

    def _expect(self, character: str) -> None:
        found = self.peek()
        if found != character:
            self._fail(f"Expecting {character!r} but found {found!r}" if found else f"Expecting {character!r}")
        self._pos += 1

    def _more(self) -> bool:
        """Drops consumed text and extends the window. Returns False at the end of the file or if the window is full."""
        rest = len(self._text) - self._pos
        if self._ended or rest > MAX_ELEMENT:
            return False
        # The window at least doubles, so that parsing an element of n characters costs O(n) including retries.
        try:
            data = self._bytes.read(max(WINDOW, rest))
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            self._fail(f"the gzip data is damaged or truncated ({error})")
        self._ended = not data
        piece = self._utf8.decode(data, final=self._ended)
        newlines = self._text.count("\n", 0, self._pos)
        last = self._text.rfind("\n", 0, self._pos)
        self._column = self._pos - last - 1 if newlines else self._column + self._pos
        self._lines += newlines
        self._chars += self._pos
        self._text, self._pos = self._text[self._pos :] + piece, 0
        return True

    def _fail(self, message: str, pos: int | None = None) -> NoReturn:
        pos = self._pos if pos is None else pos
        if self._ended and (pos >= len(self._text.rstrip()) or message.startswith("Unterminated string")):
            message = f"{message}: the file ends here, so it is truncated"
        elif len(self._text) - self._pos > MAX_ELEMENT:
            message = f"{message} (in an element of more than {MAX_ELEMENT} characters)"
        raise SourceError(
            f"{self._path}: {self._position(pos)}: {message}. Fetch the file again, or repair it at that position."
        )

    def _position(self, pos: int) -> str:
        newlines = self._text.count("\n", 0, pos)
        column = pos - self._text.rfind("\n", 0, pos) if newlines else self._column + pos + 1
        return f"line {self._lines + newlines + 1} column {column} (character {self._chars + pos})"
