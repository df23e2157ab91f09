"""`--dry-run` tells what a recipe would do, from its files and configurations alone."""

import re

import pytest

from flows.memory import Sizes, rank_bytes, sizes
from flows.plan import plan
from flows.recipe import Data, RecipeError, Train, load_recipe
from flows.workspace import open_workspace


def line_of(lines: list[str], start: str) -> list[str]:
    return next(re.split(r" {2,}", line.strip()) for line in lines if line.strip().startswith(start))


def test_examples_and_epochs_are_counted_from_the_files(write_recipe):
    recipe = load_recipe(write_recipe())
    open_workspace(recipe, lambda _: None)
    lines = list(plan(recipe))
    assert any("3 steps × 8 examples = 24 samples; trains projector;" in line for line in lines)
    # 60 scenes and two broken rows: the empty caption is seen, the truncated picture only when it is decoded.
    assert line_of(lines, "blipcapfilt")[:6] == ["blipcapfilt", "50.0%", "12", "62", "61", "0.20"]
    # Rows of an image make conversations of at most four turns.
    name, share, seen, rows, examples, _, _ = line_of(lines, "vqav2")
    assert (name, share, seen) == ("vqav2", "75.0%", "18")
    assert int(rows) / 4 < int(examples) < int(rows) / 2


def test_nothing_is_written_and_counts_stay_open_before_the_corpus_is_there(write_recipe, tmp_path):
    path = write_recipe()
    lines = list(plan(load_recipe(path)))
    assert any(line.startswith("The sample corpus will be generated first") for line in lines)
    assert line_of(lines, "blipcapfilt")[3:] == ["?", "?", "?", "known once built"]
    assert list(tmp_path.iterdir()) == [path]


def test_missing_files_are_told_after_the_plan():
    lines = []
    with pytest.raises(RecipeError, match=r"vqav2: .*v2_OpenEnded_mscoco_train2014_questions\.json is missing"):
        for line in plan(load_recipe("honeybee-7b")):
            lines.append(line)
    assert any("50,000 steps × 256 examples = 12,800,000 samples" in line for line in lines)
    assert any("4,000 steps × 128 examples = 512,000 samples" in line for line in lines)
    assert any(line.startswith("Memory of a GPU: about") for line in lines)


@pytest.mark.parametrize(
    ("name", "vision", "llm", "image_tokens"),
    [("honeybee-7b", 303_179_776, 6_738_415_616, 144), ("honeybee-13b", 303_507_456, 13_015_864_320, 256)],
)
def test_sizes_are_those_of_the_real_models(name, vision, llm, image_tokens):
    recipe = load_recipe(name)
    found = sizes(recipe, recipe.backbones.vision, recipe.backbones.llm)
    assert found is not None
    # Vicuna's published numbers of parameters; CLIP ViT-L/14's vision tower, without its projection.
    assert found.parameters["llm"] == llm
    assert found.parameters["vision"] == vision
    assert found.image_tokens == image_tokens


def test_memory_follows_the_formula():
    model = Sizes({"vision": 10, "projector": 20, "llm": 70}, width=4, layers=3, vocabulary=5, image_tokens=6)
    data = Data(weights={"a": 1.0}, max_text_tokens=10)
    train = Train(steps=1, warmup_steps=0, global_batch=4, micro_batch=2, trains=("projector", "llm"), zero_stage=2)
    tokens = 2 * (10 + 6)
    assert rank_bytes(model, data, train, ranks=2) == {
        "weights": 2 * 100,
        "gradients": 2 * 90 / 2,
        "optimiser": 12 * 90 / 2,
        "activations": 2 * tokens * 4 * 3 + 17 * 2 * tokens * 4,
        "logits": 8 * tokens * 5,
    }
    whole = rank_bytes(model, data, train.model_copy(update={"zero_stage": 3, "offload": True}), ranks=2)
    assert (whole["weights"], whole["gradients"], whole["optimiser"]) == (100, 0, 0)
