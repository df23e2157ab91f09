"""An invalid recipe is rejected with a message that names the file and the key and says what to do."""

from pathlib import Path

import pytest

from flows.preflight.check import check_settings
from flows.recipe.recipe import RECIPES, RecipeError, load_recipe
from flows.runs.workspace import locate_workspace
from pipelines.dedup.settings import Dedup


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_bundled_recipes_are_valid(path: Path):
    assert load_recipe(path.stem) == load_recipe(path)
    assert load_recipe(path).name == path.stem


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretrain/train/stepps": 5}, "pretrain.train.stepps: Extra inputs are not permitted"),
        ({"pretrain/train/steps": 0}, "pretrain.train.steps: Input should be greater than 0"),
        ({"pretrain/train/steps": None}, "pretrain: give train.steps or data.samples"),
        ({"pretrain/data/samples": 23}, "3 steps of 8 need 24 samples: raise data.samples"),
        (
            {"pretrain/train/packing": {"max_tokens": 512}},
            "with train.packing a step is a number of packs: set data.samples to the number of samples",
        ),
        (
            {"pretrain/train/packing": {"max_tokens": 130}, "pretrain/data/samples": 64},
            "max_tokens 130 is too small for an example of data.max_text_tokens 128 with an image of 4 visual tokens: "
            "raise it to 131",
        ),
        ({"pretrain/data/weights": {"gqa": 1.0}}, "names ['gqa'], which `datasets` does not describe"),
        ({"pretrain/data/weights": {"blipcapfilt": -1.0}}, "pretrain.data.weights.blipcapfilt"),
        ({"pretrain/data/datasets": ["blipcapfilt"]}, "pretrain.data: give either `weights`"),
        ({"pretrain/data/weights": None}, "pretrain.data: give either `weights`"),
        ({"pretrain/data/balance": {"strategy": "size"}}, "the strategy size computes the shares"),
        (
            {"pretrain/data/balance": {"max_epochs": {"gqa": 2}}},
            "balance.max_epochs names ['gqa'], which have no share",
        ),
        ({"pretrain/data/balance": {"max_epoch": 2}}, "pretrain.data.balance.max_epoch: Extra inputs"),
        (
            {"pretrain/data/weights": None, "pretrain/data/datasets": ["gqa"]},
            "pretrain.data.datasets names ['gqa'], which `datasets` does not describe",
        ),
        (
            {"finetune/train/evaluate_every": 5, "finetune/train/evaluate": {"benchmarks": ["pope", "gqa"]}},
            "finetune.train.evaluate names ['gqa'], which `evaluation.benchmarks` does not describe",
        ),
        ({"finetune/train/evaluate_every": 5}, "evaluate_every and evaluate go together"),
        ({"finetune/train/spike_threshold": 0}, "finetune.train.spike_threshold"),
        ({"finetune/train/on_spike": "stop"}, "finetune.train.on_spike"),
        ({"launch/peak_tflops": 0}, "launch.peak_tflops"),
        ({"launch/hostfile": "hosts"}, "launch: the slots of `hostfile` set the number of ranks"),
        ({"launch": {"hostfile": "hosts", "connect": ["ssh"]}}, "launch: connect: the command must contain {host}"),
        ({"launch/rendezvous": {"host": "10.0.0.1"}}, "launch: `rendezvous.host` is for other machines"),
        ({"launch/rendezvous": {"port": 70000}}, "launch.rendezvous.port"),
        ({"launch/rendezvous": {"host": "-v", "port": 1}}, "launch.rendezvous.host"),
        ({"launch/connect": ["sh", "{host}"]}, "launch: `connect` is for other machines"),
        ({"launch/python": "/usr/bin/python3"}, "launch: `python` is for other machines"),
        ({"launch/env": {"RANK": 1}}, "launch: env: RANK follow from ranks, hostfile and rendezvous"),
        ({"launch/env": {"A B": "1"}}, "launch.env.A B"),
        ({"backbones": {"vision": "a/b"}}, "give either `train`, or both `vision` and `llm`"),
        ({"datasets/vqav2/dedup": {"rule": "sometimes"}}, "datasets.vqav2.dedup.rule"),
        ({"datasets/vqav2/dedup": {"compare": "both"}}, "datasets.vqav2.dedup.compare"),
        ({"datasets/vqav2/dedup": {"threshold": 1.5}}, "datasets.vqav2.dedup.threshold"),
        ({"embedder": {"device": "tpu"}}, "embedder.device"),
        ({"datasets/mine": {"source": "datasets"}}, "datasets.mine: give either `annotations`"),
        ({"datasets/mine": {"hub": "owner/name"}}, "a dataset on the hub needs `source: datasets` and `columns`"),
        ({"datasets/mine": {"hub": "a/b/c"}}, "datasets.mine.hub"),
        ({"datasets/mine": {"annotations": "x", "files": "../*.json"}}, "`files` must be a glob pattern below"),
        ({"datasets/mine": {"annotations": "x", "columns": {"task": "vqa"}}}, "datasets.mine.columns: Input tag 'vqa'"),
        (
            {"datasets/mine": {"annotations": "x", "columns": {"task": "caption", "image": "i"}}},
            "datasets.mine.columns.caption.caption: Field required",
        ),
    ],
)
def test_invalid_values_are_reported(write_recipe, changes, message):
    path = write_recipe(changes)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("rule", ["semantic", "answer", "semantic+answer", "off"])
@pytest.mark.parametrize("compare", ["pair", "question", "answer"])
def test_each_dataset_has_its_own_deduplication_settings(write_recipe, rule, compare):
    chosen = {"rule": rule, "compare": compare, "threshold": 0.8}
    workspace = locate_workspace(load_recipe(write_recipe({"datasets/vqav2/dedup": chosen})))
    spec, other = workspace.spec("vqav2"), workspace.spec("refcoco")
    assert spec.dedup == Dedup(rule=rule, compare=compare, threshold=0.8)
    assert other.dedup == Dedup(rule="semantic", compare="pair", threshold=None)


# A few lines that become a billion values.
BOMB = "\n".join(
    f"{k}: &{k} [{', '.join([f'*{chr(ord(k) - 1)}' if k > 'a' else 'x'] * 9)}]" for k in "abcdefghij"
).encode()


def test_links_are_followed_unless_the_recipe_or_a_dataset_refuses_them(write_recipe):
    for changes, expected in (
        ({}, ("follow", "follow")),
        ({"image_links": "refuse"}, ("refuse", "refuse")),
        ({"image_links": "refuse", "datasets/vqav2/image_links": "follow"}, ("follow", "refuse")),
        ({"datasets/vqav2/image_links": "refuse"}, ("refuse", "follow")),
    ):
        workspace = locate_workspace(load_recipe(write_recipe(changes)))
        assert (workspace.spec("vqav2").image_links, workspace.spec("refcoco").image_links) == expected


def test_the_default_strategy_depends_on_weights_or_datasets(write_recipe):
    assert load_recipe(write_recipe()).pretrain.data.balance.strategy == "tuned"
    changes = {"pretrain/data/weights": None, "pretrain/data/datasets": ["coyo100m", "blipcapfilt"]}
    data = load_recipe(write_recipe(changes)).pretrain.data
    assert data.balance.strategy == "per-dataset"
    assert data.names == ("blipcapfilt", "coyo100m")


def test_an_unknown_name_lists_the_bundled_recipes():
    with pytest.raises(RecipeError, match="honeybee-13b, honeybee-7b"):
        load_recipe("nonesuch")


def test_invalid_yaml_is_reported_with_its_line(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("name: x\npretrain: [1, 2\n")
    with pytest.raises(RecipeError, match=r"broken\.yaml is not valid YAML[\s\S]*line 3"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: a\nname: b\n", "the key 'name' appears twice"),
        (BOMB, "more than 100,000 values"),
        (b"name: &a [*a]\n", "more than 100,000 values"),
        (b"name: \xff\xfe", "is not valid YAML"),
        (b"[" * 5000, "is not valid YAML"),
        (b"seed: " + b"1" * 10_000, "is not valid YAML"),
    ],
)
def test_a_file_that_is_not_a_recipe_is_rejected(tmp_path, content, message):
    (tmp_path / "r.yaml").write_bytes(content)
    with pytest.raises(RecipeError, match=message):
        load_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize("text", ["paths: {store: {{store}} }", "? [a, b]\n: 1", "{a: 1}: 2", 'seed: !!int ""'])
def test_invalid_keys_and_numbers_are_rejected(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match="not valid YAML"):
        load_recipe(path)


def test_settings_of_images_in_shards(write_recipe):
    recipe = load_recipe(write_recipe({"images": "reference", "pretrain/data/shard_mib": 64}))
    assert (recipe.images, recipe.pretrain.data.shard_mib, recipe.finetune.data.shard_mib) == ("reference", 64, 0.01)
    with pytest.raises(RecipeError, match=r"pretrain\.data\.image_side shrinks .*, but images: reference"):
        load_recipe(write_recipe({"images": "reference", "pretrain/data/image_side": 336}))
    for wrong in (0, 2000, "much"):
        with pytest.raises(RecipeError, match="shard_mib"):
            load_recipe(write_recipe({"pretrain/data/shard_mib": wrong}))
    with pytest.raises(RecipeError, match="shard_samples"):
        load_recipe(write_recipe({"pretrain/data/shard_samples": 4096}))


def test_an_invalid_remote_url_is_reported_before_anything_runs(write_recipe):
    for remote in ("bucket/prefix", "nonsense://bucket"):
        paths = {"store": "store", "runs": "runs", "data": "data", "remote": remote}
        with pytest.raises(RecipeError, match=rf"paths.remote: {remote}"):
            check_settings(load_recipe(write_recipe({"paths": paths})))
