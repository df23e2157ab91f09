"""The manifest of a directory of shards: read and checked before anything else is."""

from pathlib import Path
from typing import Any

from pipelines.core.errors import ShardError
from pipelines.core.store import read_manifest

FORMAT = 1  # of a shards directory: raise it when readers of the previous format would misread it


def read_shards_manifest(directory: Path) -> dict[str, Any]:
    """Returns the manifest of a shards directory. Raises ShardError if it is missing, invalid or of another FORMAT."""
    try:
        manifest = read_manifest(directory)
    except FileNotFoundError as error:
        raise ShardError(str(error)) from None
    except (ValueError, OSError) as error:
        raise ShardError(f"{directory}/manifest.json cannot be read: {error}; build again") from None
    check_format(manifest, directory)
    return manifest


def check_format(manifest: Any, where: object) -> None:
    """Raises ShardError unless a shards manifest is of this FORMAT and names its files. where: the directory or URL to
    name in the error."""
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise ShardError(
            f"{where} holds shards of format {found}, but this version reads format {FORMAT}: build them again, or "
            "read them with the version that built them"
        )
    named = manifest.get("shards")
    complete = isinstance(named, list) and len(named) > 0 and _is_count(manifest.get("num_samples"))
    if not complete or not all(map(_names_shard, named)) or not _names_file(manifest.get("lengths")):
        raise ShardError(
            f"{where}: manifest.json does not list its shards and lengths file correctly: copy it again, or build again"
        )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 0


def _names_file(facts: Any) -> bool:
    if not isinstance(facts, dict) or not all(isinstance(facts.get(key), str) for key in ("file", "sha256")):
        return False
    return Path(facts["file"]).name == facts["file"] and _is_count(facts.get("num_bytes"))


def _names_shard(facts: Any) -> bool:
    return _names_file(facts) and all(_is_count(facts.get(key)) for key in ("first", "num_samples"))


def check_sizes(directory: Path, manifest: dict[str, Any]) -> None:
    """Checks what can be checked without reading the files. Raises ShardError unless all files exist, have the sizes in
    the manifest, and the shards' sample ranges are contiguous."""
    at = 0
    for facts in [*manifest["shards"], manifest["lengths"]]:
        path = directory / facts["file"]
        found = path.stat().st_size if path.is_file() else None
        if found is None:
            raise ShardError(f"{path} is missing: delete {directory} and build again")
        if found != facts["num_bytes"]:
            raise ShardError(
                f"{path} has {found:,} bytes, but its manifest says {facts['num_bytes']:,}: delete {directory} and "
                f"build again (`honeybee verify {directory}` checks every byte)"
            )
    for facts in manifest["shards"]:
        if facts["first"] != at:
            raise ShardError(f"{directory}/{facts['file']} begins at sample {facts['first']}, but {at} comes next")
        at += facts["num_samples"]
    if at != manifest["num_samples"]:
        raise ShardError(
            f"{directory} has {at} samples in its shards, but {manifest['num_samples']} in the manifest: build again"
        )
