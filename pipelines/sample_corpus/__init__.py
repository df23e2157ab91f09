"""Writes the sample corpus: small generated scenes in the official layouts of the datasets and benchmarks.

Each layout is written by one function, (directory, pictures, rng) → Account, registered in TRAINING or HELD_OUT.
"""

import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipelines.core.integrity import MANIFEST, check, read_manifest, write_manifest
from pipelines.sample_corpus.benchmarks.llava_bench import write_llava_bench
from pipelines.sample_corpus.benchmarks.mm_vet import write_mm_vet
from pipelines.sample_corpus.benchmarks.mmbench import write_mmbench
from pipelines.sample_corpus.benchmarks.mme import write_mme
from pipelines.sample_corpus.benchmarks.mmmu import write_mmmu
from pipelines.sample_corpus.benchmarks.owleval import write_owleval
from pipelines.sample_corpus.benchmarks.pope import write_pope
from pipelines.sample_corpus.benchmarks.scienceqa import write_scienceqa_test
from pipelines.sample_corpus.benchmarks.seed_bench import write_seed_bench
from pipelines.sample_corpus.datasets.aokvqa import write_aokvqa
from pipelines.sample_corpus.datasets.captions import write_blip, write_coyo
from pipelines.sample_corpus.datasets.gqa import write_gqa
from pipelines.sample_corpus.datasets.llava import write_llava
from pipelines.sample_corpus.datasets.ocrvqa import write_ocrvqa
from pipelines.sample_corpus.datasets.refcoco import write_refcoco
from pipelines.sample_corpus.datasets.scienceqa import write_scienceqa
from pipelines.sample_corpus.datasets.sharegpt import write_sharegpt
from pipelines.sample_corpus.datasets.visual_genome import write_visual_genome
from pipelines.sample_corpus.datasets.vqav2 import write_vqav2
from pipelines.sample_corpus.datasets.vsr import write_vsr
from pipelines.sample_corpus.world.scenes import Scene, SceneImage, distinct_scenes, render
from pipelines.sample_corpus.world.writing import LayoutSummary

Layout = Callable[[Path, Sequence[SceneImage], random.Random], LayoutSummary]
TRAINING: dict[str, Layout] = {
    "blipcapfilt": write_blip,
    "coyo100m": write_coyo,
    "vqav2": write_vqav2,
    "aokvqa": write_aokvqa,
    "refcoco": write_refcoco,
    "llava150k": write_llava,
    "gqa": write_gqa,
    "ocrvqa": write_ocrvqa,
    "vsr": write_vsr,
    "scienceqa": write_scienceqa,
    "visual_genome": write_visual_genome,
    "sharegpt": write_sharegpt,
}
HELD_OUT: dict[str, Layout] = {
    "pope": write_pope,
    "mmbench": write_mmbench,
    "mme": write_mme,
    "scienceqa_test": write_scienceqa_test,
    "seed_bench": write_seed_bench,
    "llava_bench": write_llava_bench,
    "mm_vet": write_mm_vet,
    "mmmu": write_mmmu,
    "owleval": write_owleval,
}
VERSION = 6  # increment it when the bytes for the same parameters change
_FOLDERS = (
    "A-OKVQA", "BLIP", "COYO", "GQA", "LLaVA-Bench", "MM-Vet", "MMBench", "MME", "MMMU", "OCR-VQA", "OwlEval", "POPE",
    "SEED-Bench", "ScienceQA", "ScienceQA-test", "VQAv2", "VSR", "Vicuna", "VisualGenome", "coco", "llava_instruct",
    "refcoco",
)  # fmt: skip
_UNFINISHED = ".sample-unfinished"  # marks a directory without manifest as an interrupted write that may be cleared


def write_sample(directory: Path, scenes: int, held_out: int, seed: int, clear: bool = False) -> dict[str, Any]:
    """Writes the sample corpus into `directory` and returns its manifest. The same parameters give the same bytes.

    scenes: number of training images; held_out: number of images of scenes that training never shows. A complete corpus
    with the same parameters is reused; one that an interrupted write left is rewritten, and so is any with `clear`.
    Raises FileExistsError if the directory contains anything else, DamagedError if files of a complete corpus are not
    as they were written.
    """
    key = {"scenes": scenes, "held_out": held_out, "seed": seed, "version": VERSION}
    manifest_path = directory / MANIFEST
    if manifest_path.is_file():
        manifest = read_manifest(directory)
        if manifest.get("key") != key:
            raise FileExistsError(
                f"{directory} holds a sample corpus with {manifest.get('key')}, not {key}: remove it or choose another"
            )
        check(directory)
        return manifest
    _make_room(directory, clear)

    unseen, training = _scenes(scenes, held_out, seed)
    groups = {"training": _draw(training, 1, seed), "held out": _draw(unseen, 1 + scenes, seed)}
    layouts = {}
    for group, writers in (("training", TRAINING), ("held out", HELD_OUT)):
        for name, write in writers.items():
            account = write(directory, groups[group], random.Random(f"{seed}/{name}"))
            layouts[name] = {"rows": account.rows, "broken": account.broken}
    manifest = {"stage": "sample", "key": key, "layouts": layouts}
    written = write_manifest(directory, manifest)
    (directory / _UNFINISHED).unlink()
    return written


def _make_room(directory: Path, clear: bool) -> None:
    """Empties the directory except for the marker of unfinished work; clears only a directory with that marker, unless
    told to."""
    directory.mkdir(parents=True, exist_ok=True)
    marker = directory / _UNFINISHED
    if marker.exists() or clear:
        for name in _FOLDERS:
            shutil.rmtree(directory / name, ignore_errors=True)
    elif any(directory.iterdir()):
        raise FileExistsError(f"{directory} contains files that are not a sample corpus: choose an empty directory")
    marker.touch()


def _scenes(scenes: int, held_out: int, seed: int) -> tuple[list[Scene], list[Scene]]:
    """Returns the held-out scenes, each followed by its mirror image, and the disjoint training scenes."""
    rng = random.Random(f"{seed}/scenes")
    unseen: dict[Scene, None] = {}
    for scene in distinct_scenes(rng, held_out):
        unseen.update({scene: None, scene.mirrored(): None})
    return list(unseen)[:held_out], distinct_scenes(rng, scenes, without=unseen)


def _draw(scenes: list[Scene], first: int, seed: int) -> list[SceneImage]:
    rng = random.Random(f"{seed}/pictures/{first}")
    return [render(number, scene, rng) for number, scene in enumerate(scenes, start=first)]
