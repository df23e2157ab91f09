"""Datasets by name: official annotation files → Arrow batches of annotations. A new dataset is one new file here."""

from collections.abc import Callable

from pipelines.sources import (
    aokvqa,
    datasets,
    gqa,
    llava,
    llava150k,
    ocrvqa,
    refcoco,
    scienceqa,
    scienceqa_llava,
    sharegpt,
    visual_genome,
    vqav2,
    vsr,
    webdataset,
)
from pipelines.sources.base import FILE, Reject, Source, SourceError
from pipelines.sources.options import NO_OPTIONS, SourceOptions

__all__ = ["CONFIGURED", "FILE", "NO_OPTIONS", "SOURCES", "Reject", "Source", "SourceError", "SourceOptions", "get"]

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        webdataset.source("blipcapfilt"),
        webdataset.source("coyo100m"),
        vqav2.SOURCE,
        gqa.SOURCE,
        ocrvqa.SOURCE,
        vsr.SOURCE,
        scienceqa.SOURCE,
        scienceqa_llava.SOURCE,
        aokvqa.SOURCE,
        *refcoco.SOURCES,
        visual_genome.SOURCE,
        llava150k.SOURCE,
        sharegpt.SOURCE,
    )
}

# Sources that a recipe describes: options → source.
CONFIGURED: dict[str, Callable[[SourceOptions], Source]] = {"llava": llava.source, "datasets": datasets.source}


def get(name: str, options: SourceOptions = NO_OPTIONS) -> Source:
    """The source of that name. Raises SourceError listing the known names, or for options that it does not have."""
    if name in CONFIGURED:
        return CONFIGURED[name](options)
    if name not in SOURCES:
        raise SourceError(f"no source named {name!r}; known are: {', '.join(sorted([*SOURCES, *CONFIGURED]))}")
    if options != NO_OPTIONS:
        raise SourceError(f"the source {name} reads its official files alone: leave out `columns` and `files`")
    return SOURCES[name]
