"""Images whose bytes turned out to differ from those that were measured, although size and times of the file did not.

What the images table says about such an image is not reused: its bytes become part of its identity.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pipelines.core.errors import ImageRefError
from pipelines.images.references import ImageRoot, Location


@dataclass(frozen=True)
class Doubts:
    """A directory with one empty file for each doubted identity, named by its digest. Any process may add to it."""

    directory: Path

    @staticmethod
    def of(store: Path) -> "Doubts":
        """Returns those of the store with this root."""
        return Doubts(store / "images" / ".doubted")

    def add(self, identity: str) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / _name(identity)).touch()

    def read(self) -> frozenset[str]:
        """Returns the digests of the doubted identities."""
        return frozenset(path.name for path in self.directory.iterdir()) if self.directory.is_dir() else frozenset()


def settle(root: ImageRoot, location: Location, doubted: frozenset[str]) -> Location:
    """Returns the location with the digest of the image's bytes in its identity, if that is among the doubted."""
    if not doubted or _name(location.identity) not in doubted:
        return location
    try:
        found = hashlib.sha256(root.read_at(location)).hexdigest()
    except ImageRefError as error:
        found = error.reason
    return location._replace(identity=f"{location.identity}|{found}")


def _name(identity: str) -> str:
    return hashlib.sha256(identity.encode()).hexdigest()
