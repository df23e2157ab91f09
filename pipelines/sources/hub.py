"""A dataset on the Hugging Face hub: fetched once into the hub's own cache. The only file here that uses the network,
and only for a recipe that names a dataset there."""

import functools
from pathlib import Path

from pipelines.sources.base import SourceError

PARQUET = "**/*.parquet"


@functools.lru_cache(maxsize=64)
def snapshot(name: str, revision: str | None, files: str | None) -> tuple[Path, str]:
    """The directory that holds a dataset `owner/name`, and the pattern of its files below it.

    files: which files of the dataset; all Parquet files where absent. A snapshot holds links into the directory `blobs`
    beside it, so that the directory returned is the one above both: no reference leads out of it. Raises SourceError
    without network where it was never fetched, or for a name that is not there.
    """
    from huggingface_hub import snapshot_download

    pattern = files or PARQUET
    wanted = [pattern, pattern.removeprefix("**/")]  # the hub's `*` matches over directories, but wants the slash
    try:
        place = Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=wanted))
    except Exception as error:  # its own, and those of whatever HTTP library its version uses
        what = f"{name} at {revision}" if revision else name
        reason = str(error).strip().partition("\n")[0]
        raise SourceError(
            f"hub: the dataset {what} cannot be fetched ({type(error).__name__}: {reason}). Is the name right, and is "
            "there network? Else fetch its files elsewhere and name their directory as `annotations`"
        ) from None
    root = place.parent.parent
    return root, f"{place.relative_to(root).as_posix()}/{pattern}"
