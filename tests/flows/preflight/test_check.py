"""Everything that a recipe refers to is checked before anything is started."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flows.preflight.check import check_inputs, check_settings
from flows.preflight.surroundings import check_hosts
from flows.recipe.recipe import RecipeError, load_recipe
from flows.runs.workspace import locate_workspace, open_workspace
from pipelines.core.store import Store
from pipelines.sample_corpus import write_sample
from pipelines.templates.sets import set_names

OTHER_DATASET = {"annotations": "x", "source": "gqa-typo"}


def test_a_valid_recipe_passes(write_recipe):
    recipe = load_recipe(write_recipe())
    check_settings(recipe)
    check_inputs(open_workspace(recipe, lambda _: None))


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"datasets/other": OTHER_DATASET}, ["datasets.other: no source named 'gqa-typo'", "vqav2"]),
        ({"datasets/other": {"annotations": "x", "source": "datasets"}}, ["datasets.other: ", "needs `columns`"]),
        (
            {"datasets/vqav2": {"annotations": "x", "files": "*.json"}},
            ["datasets.vqav2: the source vqav2 reads only its official files"],
        ),
        (
            {"finetune/data/templates": "fein"},
            ["finetune.data.templates: template set 'fein' does not exist; the sets"],
        ),
        (
            {"finetune/data/templates": "plain"},
            ["'plain' has no templates for dataset vqav2: add", "plain/refcoco.yaml"],
        ),
        ({"finetune/data/chat": "honeybear"}, ["finetune.data.chat: no chat style 'honeybear'", "caption, honeybee"]),
        ({"finetune/train/micro_batch": 3}, ["finetune.train: global_batch 8 is not a multiple of micro_batch 3"]),
        ({"finetune/train/warmup_steps": 9}, ["finetune.train", "warmup_steps 9 must be less than the 3 steps"]),
        ({"model/projector/num_tokens": 5}, ["model.projector: num_tokens of the c-abstractor is 5", "4 or 9"]),
        ({"model/projector/type": "q-former"}, ["model.projector: unknown projector type 'q-former'", "linear"]),
        ({"model/projector/settings": {"dept": 1}}, ["model.projector: settings of the c-abstractor", "dept"]),
        (
            {"finetune/train/lora": {"targets": ["q_proj", "wq"]}},
            [
                "finetune.train: lora.targets: the language model has no linear layers named wq; it has down_proj",
                "q_proj",
            ],
        ),
        ({"evaluation/benchmarks/mmme": {"path": "x"}}, ["evaluation.benchmarks.mmme: no benchmark 'mmme'", "pope"]),
        ({"finetune/data/weights/vqav2": 1e-9}, ["finetune.data.weights: vqav2: a share below"]),
        (
            {"embedder": {"model": "nowhere"}, "datasets/vqav2/dedup": {"rule": "semantic"}},
            ["embedder: embedder.model 'nowhere'"],
        ),
    ],
)
def test_invalid_settings_are_reported(write_recipe, changes, messages):
    with pytest.raises(RecipeError) as caught:
        check_settings(load_recipe(write_recipe(changes)))
    for message in messages:
        assert message in str(caught.value)


@pytest.mark.parametrize("name", [name for name in set_names() if name != "plain"])
def test_every_template_set_works_in_both_stages(write_recipe, name):
    check_settings(load_recipe(write_recipe({"pretrain/data/templates": name, "finetune/data/templates": name})))


def test_all_problems_are_reported_at_once(write_recipe):
    changes = {"finetune/data/chat": "honeybear", "finetune/train/micro_batch": 3}
    with pytest.raises(RecipeError, match=r"honeybear[\s\S]*micro_batch"):
        check_settings(load_recipe(write_recipe(changes)))


def test_an_invalid_setting_is_reported_before_torch_is_imported(write_recipe):
    path = write_recipe({"finetune/data/chat": "honeybear"})
    code = (
        "import sys; from flows.preflight.check import check_settings; from flows.recipe.recipe import load_recipe\n"
        "try: check_settings(load_recipe(sys.argv[1]))\n"
        "except ValueError: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], text=True, capture_output=True)
    assert done.stdout == "False\n", done.stderr


def test_missing_files_are_reported(write_recipe, tmp_path):
    path = write_recipe({"sample": None, "backbones": {"vision": "./vit", "llm": "owner/name"}})
    (tmp_path / "data" / "VQAv2").mkdir(parents=True)
    with pytest.raises(RecipeError) as caught:
        check_inputs(locate_workspace(load_recipe(path)))
    text = str(caught.value)
    data = tmp_path / "data"
    assert f"datasets.vqav2: {data}/VQAv2/v2_OpenEnded_mscoco_train2014_questions.json is missing" in text
    assert f"datasets.vqav2.images: {data}/VQAv2/images is not a directory" in text
    assert re.search(rf"datasets\.blipcapfilt: no file matches \*\*/\*\.tar or .* in {data}/BLIP", text)
    assert f"evaluation.benchmarks.pope: {data}/POPE does not exist" in text
    assert "backbones.vision: ./vit is not a directory: put the model there, or correct the recipe" in text
    assert "HF_HUB_OFFLINE is set, so nothing is downloaded: run `hf download owner/name`" in text


COLUMNS = {"task": "caption", "image": "image", "caption": "text"}


def test_a_hub_dataset_without_a_network_is_reported_once(write_recipe, tmp_path):
    """Tests run with HF_HUB_OFFLINE. Any error of the hub's client must become a single message."""
    mine = {"source": "datasets", "hub": "nobody/nothing", "columns": COLUMNS}
    changes = {"sample": None, "datasets/mine": mine, "pretrain/data/weights": {"mine": 1.0}}
    recipe = load_recipe(write_recipe(changes))
    with pytest.raises(RecipeError) as caught:
        check_inputs(locate_workspace(recipe))
    problem = [line for line in str(caught.value).splitlines() if "datasets.mine" in line]
    assert len(problem) == 1
    assert "datasets.mine: hub: the dataset nobody/nothing cannot be fetched" in problem[0]
    assert "set `annotations` to their directory" in problem[0]


def test_benchmarks_are_read_before_anything_is_trained(write_recipe, tmp_path):
    write_sample(tmp_path / "data", scenes=4, held_out=8, seed=0)
    path = write_recipe(
        {
            "sample": None,
            "evaluation/benchmarks/pope": {"path": "POPE", "images": "BLIP"},
            "evaluation/benchmarks/mmbench": {"path": "POPE/coco_pope_random.json"},
        }
    )
    with pytest.raises(RecipeError) as caught:
        check_inputs(locate_workspace(load_recipe(path)))
    assert "evaluation.benchmarks.pope: image_missing: there is no 'COCO_val2014_" in str(caught.value)
    assert "evaluation.benchmarks.mmbench: " in str(caught.value)
    assert "datasets" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model/projector": {"type": "linear", "num_tokens": 5}}, "model: "),
        ({"model/vision_layer": 99}, "vision_layer"),
        ({"model/image_size": 7}, "model: "),
    ],
)
def test_parts_that_do_not_fit_are_reported_before_weights_are_loaded(recipe_of, changes, message):
    check_inputs(locate_workspace(recipe_of()))
    with pytest.raises(RecipeError, match=message):
        check_inputs(locate_workspace(recipe_of(changes)))


def test_lora_targets_are_checked_against_the_configuration(recipe_of, write_recipe, corpus, tmp_path):
    llm = tmp_path / "llm"
    shutil.copytree(corpus / "backbones/llm", llm)
    (llm / "model.safetensors").unlink()  # the check needs no weights
    backbones = {"vision": str(corpus / "backbones/vision"), "llm": str(llm)}
    check_settings(recipe_of({"backbones": backbones, "finetune/train/lora": {"targets": ["gate_proj"]}}))
    with pytest.raises(RecipeError, match=r"finetune\.train: lora\.targets: .* named Wqkv; it has down_proj"):
        check_settings(recipe_of({"backbones": backbones, "finetune/train/lora": {"targets": ["Wqkv"]}}))
    with pytest.raises(RecipeError, match=r"pretrain\.train: lora adapts the language model: add llm to `trains`"):
        load_recipe(write_recipe({"pretrain/train/lora": {}}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda llm: _without(llm, "eos_token"), "has no eos_token: set it in its tokenizer_config.json"),
        (lambda llm: _without(llm, "bos_token"), "has no bos_token: set it in its tokenizer_config.json"),
        (lambda llm: (llm / "tokenizer.json").write_text("{"), "cannot be read: it needs a complete tokenizer.json"),
    ],
)
def test_an_unusable_tokenizer_is_reported_before_data_is_built(recipe_of, corpus, tmp_path, damage, message):
    llm = tmp_path / "llm"
    shutil.copytree(corpus / "backbones/llm", llm)
    backbones = {"vision": str(corpus / "backbones/vision"), "llm": str(llm)}
    check_inputs(locate_workspace(recipe_of({"backbones": backbones})))
    damage(llm)
    with pytest.raises(RecipeError, match=f"backbones.llm: the tokenizer of {llm} {message}"):
        check_inputs(locate_workspace(recipe_of({"backbones": backbones})))


def _without(llm: Path, token: str) -> None:
    path = llm / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings[token]
    path.write_text(json.dumps(settings))


def test_a_benchmark_without_questions_is_reported(write_recipe, tmp_path):
    write_sample(tmp_path / "data", scenes=4, held_out=8, seed=0)
    empty = tmp_path / "data" / "POPE" / "coco_pope_empty.json"
    empty.touch()
    path = write_recipe({"sample": None, "evaluation/benchmarks/pope/path": "POPE/coco_pope_empty.json"})
    with pytest.raises(RecipeError, match=r"evaluation.benchmarks.pope: .*coco_pope_empty.json"):
        check_inputs(locate_workspace(load_recipe(path)))


def test_missing_gpus_are_reported(write_recipe):
    recipe = load_recipe(write_recipe({"launch": {"ranks": 1 + torch.cuda.device_count(), "device": "cuda"}}))
    with pytest.raises(RecipeError, match=r"ranks on cuda need \d+ GPUs, but this host has"):
        check_hosts(recipe)


def test_unwritable_directories_are_reported(write_recipe, tmp_path):
    (tmp_path / "file").touch()
    paths = {"store": str(tmp_path / "file" / "store"), "runs": "/proc/runs"}
    with pytest.raises(RecipeError, match=r"paths.store: .*/file is not a directory") as caught:
        check_settings(load_recipe(write_recipe({"paths": paths})))
    assert os.geteuid() == 0 or "paths.runs: /proc is not writable" in str(caught.value)


def test_a_store_that_cannot_be_written_is_no_problem_if_something_is_built(write_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "store")
    (tmp_path / "store").mkdir()
    recipe = load_recipe(write_recipe({"paths": {"store": str(tmp_path / "store"), "runs": str(tmp_path / "runs")}}))
    with pytest.raises(RecipeError, match=r"paths\.store: .*store is not writable"):
        check_settings(recipe)
    Store(tmp_path / "store").produce("stage", {"n": 1}, lambda out: {})
    check_settings(recipe)


def test_an_unknown_beam_runner_is_reported(write_recipe):
    check_settings(load_recipe(write_recipe({"beam": ["--runner=apache_beam.runners.dask.dask_runner.DaskRunner"]})))
    for runner in ("NoRunner", "no.such.Runner", "apache_beam.runners.dask.NoRunner"):
        with pytest.raises(RecipeError, match=f"beam: .*{runner}"):
            check_settings(load_recipe(write_recipe({"beam": [f"--runner={runner}"]})))


def test_a_missing_optional_package_is_reported(write_recipe):
    if importlib.util.find_spec("wandb"):
        pytest.skip("wandb is installed")
    recipe = load_recipe(write_recipe({"finetune/train/wandb": {"project": "bees"}}))
    with pytest.raises(RecipeError, match=r"finetune\.train\.wandb: the package wandb is not installed: `pip install"):
        check_settings(recipe)
