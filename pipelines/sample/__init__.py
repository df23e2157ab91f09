"""Writes the sample corpus: small generated scenes in the official layouts of the datasets and benchmarks.

A layout is one function (directory, pictures, rng) → Account; add it to TRAINING or to HELD_OUT.
"""

import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipelines.sample.aokvqa import write_aokvqa
from pipelines.sample.captions import write_blip, write_coyo
from pipelines.sample.gqa import write_gqa
from pipelines.sample.llava import write_llava
from pipelines.sample.llava_bench import write_llava_bench
from pipelines.sample.mm_vet import write_mm_vet
from pipelines.sample.mmbench import write_mmbench
from pipelines.sample.mme import write_mme
from pipelines.sample.mmmu import write_mmmu
from pipelines.sample.ocrvqa import write_ocrvqa
from pipelines.sample.owleval import write_owleval
from pipelines.sample.pope import write_pope
from pipelines.sample.refcoco import write_refcoco
from pipelines.sample.scenes import Picture, Scene, distinct_scenes, render
from pipelines.sample.scienceqa import write_scienceqa
from pipelines.sample.scienceqa_test import write_scienceqa_test
from pipelines.sample.seed_bench import write_seed_bench
from pipelines.sample.sharegpt import write_sharegpt
from pipelines.sample.visual_genome import write_visual_genome
from pipelines.sample.vqav2 import write_vqav2
from pipelines.sample.vsr import write_vsr
from pipelines.sample.writing import Account
from pipelines.store import MANIFEST, write_atomic

Layout = Callable[[Path, Sequence[Picture], random.Random], Account]
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
VERSION = 6  # raise it when the bytes of the same parameters change
_FOLDERS = (
    "A-OKVQA", "BLIP", "COYO", "GQA", "LLaVA-Bench", "MM-Vet", "MMBench", "MME", "MMMU", "OCR-VQA", "OwlEval", "POPE",
    "SEED-Bench", "ScienceQA", "ScienceQA-test", "VQAv2", "VSR", "Vicuna", "VisualGenome", "coco", "llava_instruct",
    "refcoco",
)  # fmt: skip
_UNFINISHED = ".sample-unfinished"  # says that what lies in a directory without manifest is ours


def write_sample(directory: Path, scenes: int, held_out: int, seed: int) -> dict[str, Any]:
    """Writes the sample corpus into `directory`, the same bytes for the same parameters, and returns its manifest.

    scenes: pictures to learn from; held_out: pictures of scenes that are not among them. A whole corpus of the same
    parameters is left as it is; what a killed writer left is written anew. Raises FileExistsError where the directory
    holds anything else.
    """
    key = {"scenes": scenes, "held_out": held_out, "seed": seed, "version": VERSION}
    manifest_path = directory / MANIFEST
    if manifest_path.is_file():
        manifest = json.loads(manifest_path.read_text())
        if manifest.get("key") != key:
            raise FileExistsError(f"{directory} holds {manifest.get('key')}, not {key}: remove it or choose another")
        return manifest
    _make_room(directory)

    kept_back, learnt = _scenes(scenes, held_out, seed)
    groups = {"training": _pictures(learnt, 1, seed), "held out": _pictures(kept_back, 1 + scenes, seed)}
    layouts = {}
    for group, writers in (("training", TRAINING), ("held out", HELD_OUT)):
        for name, write in writers.items():
            account = write(directory, groups[group], random.Random(f"{seed}/{name}"))
            layouts[name] = {"rows": account.rows, "broken": account.broken}
    manifest = {"stage": "sample", "key": key, "layouts": layouts}
    write_atomic(manifest_path, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    (directory / _UNFINISHED).unlink()
    return manifest


def _make_room(directory: Path) -> None:
    """Leaves the directory empty but for the mark of unfinished work; clears only what bears that mark."""
    directory.mkdir(parents=True, exist_ok=True)
    mark = directory / _UNFINISHED
    if mark.exists():
        for name in _FOLDERS:
            shutil.rmtree(directory / name, ignore_errors=True)
    elif any(directory.iterdir()):
        raise FileExistsError(f"{directory} holds files that are no sample corpus: choose an empty directory")
    mark.touch()


def _scenes(scenes: int, held_out: int, seed: int) -> tuple[list[Scene], list[Scene]]:
    """Held-out scenes, each with its mirror image, and scenes to learn from, which are none of them."""
    rng = random.Random(f"{seed}/scenes")
    kept_back: dict[Scene, None] = {}
    for scene in distinct_scenes(rng, held_out):
        kept_back.update({scene: None, scene.mirrored(): None})
    return list(kept_back)[:held_out], distinct_scenes(rng, scenes, without=kept_back)


def _pictures(scenes: list[Scene], first: int, seed: int) -> list[Picture]:
    rng = random.Random(f"{seed}/pictures/{first}")
    return [render(number, scene, rng) for number, scene in enumerate(scenes, start=first)]
