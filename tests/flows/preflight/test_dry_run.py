"""`--dry-run` predicts what a recipe would do, from its files and configurations only."""

import itertools
import re

import pytest

from flows.preflight.dry_run import plan
from flows.preflight.memory import sizes
from flows.preflight.outcome import NotChecked
from flows.recipe.recipe import RecipeError, load_recipe
from flows.runs.workspace import STAGES
from pipelines.packing.plan import PackingError

pytestmark = pytest.mark.slow

COLUMNS = [
    "dataset",
    "rows",
    "examples",
    "turns",
    "wanted",
    "got",
    "samples",
    "epochs",
    "supervised",
    "visual",
    "numbers",
]


def table(lines: list[str], stage: str) -> dict[str, dict[str, str]]:
    """Returns the rows of a stage's table by dataset."""
    begin = next(i for i, line in enumerate(lines) if line.startswith(f"{stage}:"))
    rows: dict[str, dict[str, str]] = {}
    for line in itertools.takewhile(lambda line: line.startswith("  "), lines[begin + 3 :]):
        cells = re.split(r" {2,}", line.strip())
        if len(cells) == len(COLUMNS):
            rows[cells[0]] = dict(zip(COLUMNS, cells, strict=True))
    return rows


def test_the_forecast_matches_the_build(recipe_of, build_data, corpus, tmp_path):
    paths = {"store": str(tmp_path / "store"), "runs": str(tmp_path / "runs"), "data": str(corpus / "data")}
    recipe = recipe_of({"paths": paths})
    before = list(plan(recipe, training=False))
    assert not (tmp_path / "store").exists()
    build_data(recipe)
    after = list(plan(recipe, training=False))
    for stage in STAGES:
        estimated, built = table(before, stage), table(after, stage)
        for dataset, row in built.items():
            assert row["numbers"] == "built"
            assert estimated[dataset]["numbers"] == "estimated from all rows"
            same = [column for column in COLUMNS if column not in ("numbers", "examples", "epochs", "supervised")]
            assert {c: row[c] for c in same} == {c: estimated[dataset][c] for c in same}
            # A truncated image is found only when it is decoded.
            assert int(estimated[dataset]["examples"]) - int(row["examples"]) in (0, 1)
            assert float(row["supervised"]) == pytest.approx(float(estimated[dataset]["supervised"]), rel=0.05)
    assert table(after, "pretrain")["blipcapfilt"]["rows"] == "62"
    assert table(after, "pretrain")["blipcapfilt"]["examples"] == "60"
    assert table(before, "pretrain")["blipcapfilt"]["examples"] == "61"


def test_only_examples_of_the_exact_recipe_count_as_built(recipe_of, build_data):
    build_data(recipe_of())
    changed = recipe_of(
        {"finetune/data/max_text_tokens": 200, "datasets/vqav2/max_turns": 2, "pretrain/train/steps": 5}
    )
    lines = list(plan(changed, training=False))
    assert {row["numbers"] for row in table(lines, "finetune").values()} == {"estimated from all rows"}
    assert {row["numbers"] for row in table(lines, "pretrain").values()} == {"built"}
    # Adding a dataset does not affect the others, although they share image tables.
    more = recipe_of({"finetune/data/weights": {"vqav2": 1, "refcoco": 1, "coyo100m": 1}})
    rows = table(list(plan(more, training=False)), "finetune")
    assert [row["numbers"] for row in rows.values()] == ["estimated from all rows", "built", "built"]


def test_decontamination_is_part_of_the_forecast(recipe_of, build_data):
    recipe = recipe_of({"decontamination": {"evaluation": True}, "finetune/data/weights": {"refcoco": 1.0}})
    before = table(list(plan(recipe, training=False)), "finetune")
    assert before["refcoco"]["numbers"] == "estimated from all rows, before overlaps"
    build_data(recipe)
    after = list(plan(recipe, training=False))
    assert table(after, "finetune")["refcoco"]["numbers"] == "built"
    assert table(after, "pretrain")["coyo100m"]["numbers"] == "built"


def test_unknown_sizes_are_shown_as_unknown(write_recipe, tmp_path):
    path = write_recipe(
        {
            "finetune/data/weights": None,
            "finetune/data/datasets": ["vqav2", "refcoco"],
            "finetune/data/balance": {"strategy": "size"},
        }
    )
    lines = list(plan(load_recipe(path)))
    assert any(line.startswith("The sample corpus will be generated first") for line in lines)
    row = table(lines, "finetune")["vqav2"]
    assert {row[column] for column in COLUMNS[1:-1]} == {"?"}
    assert table(lines, "pretrain")["blipcapfilt"]["wanted"] == "50.0%"
    assert table(lines, "pretrain")["blipcapfilt"]["samples"] == "12"
    assert any("not known before the data is built" in line for line in lines)
    assert list(tmp_path.iterdir()) == [path]


def test_impossible_mixtures_are_reported(recipe_of, build_data):
    build_data(recipe_of())
    changes = {
        "finetune/data/weights": None,
        "finetune/data/datasets": ["refcoco"],
        "finetune/data/balance": {"max_epochs": 0.1},
    }
    problem = r"max_epochs allows only \d+ samples, but 24 are wanted"
    with pytest.raises(RecipeError, match=rf"finetune.data.balance: {problem}"):
        list(plan(recipe_of(changes), training=False))
    estimated = list(plan(recipe_of({**changes, "finetune/data/max_text_tokens": 250}), training=False))
    assert any(re.search(f"the mixture is impossible: {problem}", line) for line in estimated)


def statuses(lines: list[str]) -> dict[str, str]:
    """Returns item → status of the table of checks."""
    begin = next(i for i, line in enumerate(lines) if re.match(r" +status +checked", line))
    rows = [re.split(r" {2,}", line.strip()) for line in lines[begin + 1 :]]
    return {row[1]: row[0] for row in rows}


def test_every_item_has_a_status(recipe_of):
    found = statuses(list(plan(recipe_of(), training=False)))
    items = ["settings", "backbones.llm", "datasets.refcoco", "evaluation.benchmarks.pope", "datasets.coyo100m.images"]
    assert {item: found[item] for item in items} == dict.fromkeys(items, "OK")
    assert found["datasets.vqav2.images"] == "WARNING"  # one image of the sample corpus is truncated
    assert set(found.values()) == {"OK", "WARNING"}


def test_what_could_not_be_checked_is_said(recipe_of):
    judge = {"url": "http://127.0.0.1:9/v1", "model": "judge"}
    lines: list[str] = []
    with pytest.raises(NotChecked, match=r"tiny: nothing failed, but 1 of \d+ items .*: evaluation.judge"):
        for line in plan(recipe_of({"evaluation/judge": judge})):
            lines.append(line)
    assert statuses(lines)["evaluation.judge"] == "NOT CHECKED"
    assert NotChecked.exit_code not in (0, 1, 2)


def test_a_dataset_without_usable_rows_fails(recipe_of):
    lines: list[str] = []
    with pytest.raises(RecipeError) as caught:
        for line in plan(recipe_of({"datasets/vqav2/images": "BLIP"}), training=False):
            lines.append(line)
    assert statuses(lines)["datasets.vqav2.images"] == "FAILED"
    assert re.search(
        r"datasets\.vqav2: estimated from all rows: 551 of 551 rows .*: 549 image_missing", str(caught.value)
    )
    assert "none of 32 sampled images can be used below" in str(caught.value)
    assert "datasets.refcoco" not in str(caught.value)


def test_missing_files_are_reported_after_the_plan():
    lines = []
    with pytest.raises(RecipeError, match=r"vqav2: .*v2_OpenEnded_mscoco_train2014_questions\.json is missing"):
        for line in plan(load_recipe("honeybee-7b")):
            lines.append(line)
    assert any("50,000 steps × 256 examples = 12,800,000 samples" in line for line in lines)
    assert any("4,000 steps × 128 examples = 512,000 samples" in line for line in lines)
    assert sum(line.startswith("Memory per GPU: about") for line in lines) == 2


@pytest.mark.parametrize(
    ("name", "vision", "llm", "image_tokens"),
    [("honeybee-7b", 303_179_776, 6_738_415_616, 144), ("honeybee-13b", 303_507_456, 13_015_864_320, 256)],
)
def test_parameter_counts_match_the_real_models(name, vision, llm, image_tokens):
    recipe = load_recipe(name)
    found = sizes(recipe, recipe.backbones.vision, recipe.backbones.llm)
    assert found is not None
    # The published parameter counts of Vicuna, and of CLIP ViT-L/14's vision tower without its projection.
    assert found.parameters["llm"] == llm
    assert found.parameters["vision"] == vision
    assert found.image_tokens == image_tokens


def test_memory_is_estimated_for_the_training_device(recipe_of):
    lines = [line for line in plan(recipe_of()) if line.startswith("Memory")]
    assert len(lines) == 2
    assert all(re.match(r"Memory per rank on the CPU: about 0\.\d GiB .*libraries 0\.6", line) for line in lines)


def test_effects_of_image_fit_on_boxes_and_shrunk_images_are_described(recipe_of):
    def described(changes):
        return [line for line in plan(recipe_of(changes)) if "image_fit" in line]

    assert described({"finetune/data/image_side": 48}) == []
    assert described({"model/image_fit": "pad", "finetune/data/image_side": 48}) == [
        "Boxes of refcoco stay relative to the full image, which the model sees with padding (model.image_fit: pad)."
    ]
    boxes, shrunk = described({"model/image_fit": "crop", "finetune/data/image_side": 48})
    assert boxes.startswith("Boxes of refcoco stay relative to the full image, of which the model sees only the centre")
    assert shrunk.startswith("Images shrunk to 48 pixels are enlarged again where their aspect ratio exceeds 1.50:1")
    match = r"shorter side to 32 pixels, but finetune.data.image_side .* to 31, .* to 64"
    with pytest.raises(RecipeError, match=match):
        described({"model/image_fit": "crop", "finetune/data/image_side": 31})
    described({"model/image_fit": "pad", "finetune/data/image_side": 31})


def test_packs_are_forecast_and_too_few_packs_are_reported_before_training(recipe_of, build_data):
    packed = {"finetune/data/samples": 24, "finetune/train/packing": {"max_tokens": 300}, "finetune/train/steps": None}
    packed |= {"finetune/train/global_batch": 2, "finetune/train/micro_batch": 1}
    recipe = recipe_of(packed)
    build_data(recipe)
    lines = list(plan(recipe, training=False))
    assert any("finetune: 24 samples in packs of 300 positions, 2 packs per step" in line for line in lines)
    (forecast,) = re.findall(r"fill about (\d+) steps of 2 packs", "\n".join(lines))
    few = recipe_of(packed | {"finetune/train/steps": int(forecast) + 2})
    with pytest.raises(
        PackingError, match=r"finetune: 24 samples fill \d+ packs, enough for only \d+ steps of 2 packs"
    ):
        build_data(few)
