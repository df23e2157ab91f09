"""The sources by name. A source reads a dataset's annotation files into Arrow batches; each has its own file here."""

from collections.abc import Callable

from pipelines.sources.base import FILE, SKIPPED, Source, SourceError
from pipelines.sources.fields import Reject
from pipelines.sources.generic import huggingface, llava
from pipelines.sources.official import (
    aokvqa,
    caption_tars,
    gqa,
    llava150k,
    ocrvqa,
    refcoco,
    scienceqa,
    scienceqa_llava,
    sharegpt,
    visual_genome,
    vqav2,
    vsr,
)
from pipelines.sources.options import DEFAULT_OPTIONS, SourceOptions

__all__ = ["FILE", "SKIPPED", "SOURCES", "Reject", "Source", "SourceError", "SourceOptions", "get"]

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        caption_tars.source("blipcapfilt"),
        caption_tars.source("coyo100m"),
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

# Sources that a recipe configures: options → source.
CONFIGURABLE_SOURCES: dict[str, Callable[[SourceOptions], Source]] = {
    "llava": llava.source,
    "datasets": huggingface.source,
}


def get(name: str, options: SourceOptions = DEFAULT_OPTIONS) -> Source:
    """Returns the source `name`. Raises SourceError for an unknown name or for options that the source lacks."""
    if name in CONFIGURABLE_SOURCES:
        return CONFIGURABLE_SOURCES[name](options)
    if name not in SOURCES:
        names = ", ".join(sorted([*SOURCES, *CONFIGURABLE_SOURCES]))
        raise SourceError(f"no source named {name!r} exists: choose one of {names}")
    if options != DEFAULT_OPTIONS:
        raise SourceError(f"the source {name} reads only its official files: remove `columns` and `files`")
    return SOURCES[name]
