"""Fetches a dataset from the Hugging Face hub once, into the hub's own cache. Only this file uses the network, and only
for a recipe that names a hub dataset."""

import functools
from pathlib import Path

from pipelines.sources.base import SourceError

PARQUET = "**/*.parquet"


class HubUnreachable(SourceError):
    """The hub does not answer, so it is not known whether the dataset exists."""


@functools.lru_cache(maxsize=64)
def snapshot(name: str, revision: str | None, files: str | None) -> tuple[Path, str]:
    """Returns the directory that holds the dataset `owner/name`, and the glob pattern of its files below it.

    files: a glob of the dataset's files; default: all Parquet files. A snapshot holds links into the directory `blobs`
    next to it, so the parent of both is returned and no reference leads out of it. Raises SourceError if the dataset
    does not exist, or is not cached and the hub must not be asked; HubUnreachable if it is not cached and the hub does
    not answer.
    """
    from huggingface_hub import constants, errors, snapshot_download

    pattern = files or PARQUET
    wanted = [pattern, pattern.removeprefix("**/")]  # the hub's `*` matches across directories but requires the slash
    try:
        directory = Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=wanted))
    except Exception as error:  # the hub's errors, and those of the HTTP library that its version uses
        what = f"{name} at {revision}" if revision else name
        reason = str(error).strip().partition("\n")[0]
        certain = errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError
        known = constants.HF_HUB_OFFLINE or isinstance(error, certain)
        version = f" --revision {revision}" if revision else ""
        raise (SourceError if known else HubUnreachable)(
            f"hub: the dataset {what} cannot be fetched ({type(error).__name__}: {reason}). Check its name and the "
            f"network, and download it with `hf download {name} --repo-type dataset{version}` where the hub can be "
            "reached, or fetch its files elsewhere and set `annotations` to their directory"
        ) from None
    root = directory.parent.parent
    return root, f"{directory.relative_to(root).as_posix()}/{pattern}"
