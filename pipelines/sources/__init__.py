"""Datasets by name: official annotation files → Arrow batches of annotations. A new dataset is one new file here."""

from pipelines.sources import (
    aokvqa,
    gqa,
    llava,
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

__all__ = ["FILE", "SOURCES", "Reject", "Source", "SourceError", "get"]

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
        llava.SOURCE,
        sharegpt.SOURCE,
    )
}


def get(name: str) -> Source:
    """The source of that name. Raises SourceError listing the known names."""
    if name not in SOURCES:
        raise SourceError(f"no source named {name!r}; known are: {', '.join(sorted(SOURCES))}")
    return SOURCES[name]
