"""Finds files below a directory by glob patterns: the one walker of annotation files, tars, tables and benchmarks.

Hidden names are skipped and listed. Links that lie on the disk are followed, wherever they lead, and every file and
directory is visited once. What cannot be followed is an error that names it.
"""

import os
import re
import stat
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

# Copies, backups and metadata that editors, operating systems and file servers leave next to the data.
_HIDDEN = re.compile(
    r"\.(?!\.?$).*|.*~|~\$.*|#.*#|.*\.sw[op]|__MACOSX|@eaDir|\$RECYCLE\.BIN|Thumbs\.db|desktop\.ini", re.DOTALL
)
State = tuple[str, ...]  # the components of a pattern that still have to match


class WalkError(ValueError):
    """A directory that cannot be walked completely; the message names the link or file and the remedy."""


@dataclass(frozen=True)
class Listing:
    """What a walk found. hidden, repeated: names relative to the root, of which the latter link to what is listed."""

    files: tuple[Path, ...]
    hidden: tuple[str, ...] = ()
    repeated: tuple[str, ...] = ()


def is_hidden(path: str) -> bool:
    """Returns whether a component of a relative path is hidden, such as `.ipynb_checkpoints`, `._a.jpg` or `a.txt~`."""
    return any(_HIDDEN.fullmatch(name) for name in path.split("/"))


def walk(root: Path, *patterns: str) -> Listing:
    """Returns the regular files below `root` that match a pattern, sorted by path. A pattern is one of `Path.glob`; its
    wildcards do not match hidden names. Raises WalkError, and ValueError for an invalid pattern."""
    walker = _Walker(root)
    if root.is_dir():
        walker.run(frozenset(_components(pattern) for pattern in patterns))
    paths = (root / name for name in walker.found.values())
    return Listing(tuple(sorted(paths)), tuple(sorted(walker.hidden)), tuple(sorted(walker.repeated)))


def outside_links(root: Path, names: list[str]) -> list[str]:
    """Returns those of the names whose files are, through links, not below the root."""
    inside = os.path.realpath(root).rstrip("/") + "/"
    return [name for name in names if not os.path.realpath(root / name).startswith(inside)]


def _components(pattern: str) -> State:
    parts = tuple(part for part in pattern.split("/") if part not in ("", "."))
    if not parts or pattern.startswith("/") or ".." in parts:
        raise ValueError(f"{pattern!r} is empty, absolute or contains '..'")
    if any("**" in part and part != "**" for part in parts):
        raise ValueError("'**' can only be an entire component of the pattern")
    return (*parts, "*") if parts[-1] == "**" else parts


class _Walker:
    def __init__(self, root: Path):
        self.root = root
        self.found: dict[str, str] = {}  # real path → name below the root
        self.hidden: set[str] = set()
        self.repeated: set[str] = set()
        self._visited: set[tuple[str, frozenset[State]]] = set()
        self._links: list[tuple[str, str, frozenset[State] | None]] = []  # followed after all real directories

    def run(self, states: frozenset[State]) -> None:
        self._directory("", os.path.realpath(self.root), states)
        while self._links:
            waiting, self._links = sorted(self._links, key=lambda link: link[0]), []
            for name, real, wanted in waiting:
                if wanted is None:
                    self._file(name, real)
                elif not self._directory(name, real, wanted):
                    self.repeated.add(name)

    def _directory(self, name: str, real: str, states: frozenset[State]) -> bool:
        """Lists one directory and those below it. Returns False if it was visited before."""
        states |= {state[1:] for state in states if state[0] == "**"}
        if (real, states) in self._visited:
            return False
        self._visited.add((real, states))
        try:
            with os.scandir(real) as entries:
                children = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise WalkError(f"{self.root / name} cannot be listed: {error.strerror}") from None
        for entry in children:
            self._entry(entry, f"{name}/{entry.name}" if name else entry.name, f"{real}/{entry.name}", states)
        return True

    def _entry(self, entry: os.DirEntry[str], name: str, real: str, states: frozenset[State]) -> None:
        matching = {state for state in states if state[0] == "**" or fnmatchcase(entry.name, state[0])}
        hidden = is_hidden(entry.name)
        if hidden and (named := {state for state in matching if state[0][0] == entry.name[0]}):
            matching, hidden = named, False  # the pattern names it on purpose, as `.cache` does
        below = frozenset(s if s[0] == "**" else s[1:] for s in matching if s[0] == "**" or len(s) > 1)
        wanted = any(len(state) == 1 for state in matching)
        if not below and not wanted:
            return
        try:
            mode = entry.stat().st_mode
        except OSError as error:
            if not hidden:
                raise WalkError(f"{self.root / name}{_target(real)}: {error.strerror}. Repair or remove it.") from None
            return
        if not (below if stat.S_ISDIR(mode) else wanted):
            return
        if hidden:
            self.hidden.add(name)
        elif entry.is_symlink():
            self._link(name, real, below if stat.S_ISDIR(mode) else None)
        elif stat.S_ISDIR(mode):
            self._directory(name, real, below)
        elif stat.S_ISREG(mode):
            self._file(name, real)
        else:
            raise WalkError(f"{self.root / name} is not a regular file: remove it")

    def _file(self, name: str, real: str) -> None:
        if self.found.setdefault(real, name) != name:
            self.repeated.add(name)

    def _link(self, name: str, real: str, states: frozenset[State] | None) -> None:
        target = os.path.realpath(real)
        if states is not None and f"{real}/".startswith(f"{target.rstrip('/')}/"):
            raise WalkError(f"{self.root / name} links to {target}, which contains the link itself: remove it")
        if states is None and not Path(target).is_file():
            raise WalkError(f"{self.root / name} links to {target}, which is not a regular file: remove it")
        self._links.append((name, target, states))


def _target(path: str) -> str:
    try:
        return f" links to {Path(path).readlink()}"
    except OSError:
        return ""
