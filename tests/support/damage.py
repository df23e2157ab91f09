"""Damage to files as a disk does it: bits flip, and neither size nor times of the file tell."""

import os
import random
from pathlib import Path


def flip(path: Path, seed: int = 0) -> None:
    """Flips one bit of a file and restores its modification time. The bit depends on the seed and the file's size."""
    status = path.stat()
    bit = random.Random(f"{seed}/{status.st_size}").randrange(8 * status.st_size)
    with path.open("r+b") as file:
        file.seek(bit // 8)
        value = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([value ^ (1 << bit % 8)]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def files_of(directory: Path) -> dict[str, bytes]:
    """Returns path below the directory → bytes, of all files that are not hidden."""
    paths = (path for path in directory.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}
