"""Full runs on a tiny corpus: their results, and that a second run rebuilds nothing."""

import json
import logging
import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from support.damage import flip
from support.judge_server import KEY, serving
from support.tiny import write_tiny

from flows.recipe.recipe import RecipeError
from model.check_directory import ModelError
from model.modeling import HoneybeeForConditionalGeneration
from pipelines.templates import sets

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(tmp_path_factory, prefect, forked_ranks) -> Path:
    """A directory in which the tiny recipe has run once."""
    from flows.train_honeybee import train_honeybee

    root = tmp_path_factory.mktemp("run")
    scores = train_honeybee(str(write_tiny(root, {})), "first")
    assert scores == json.loads((root / "runs/tiny/first/scores.json").read_text())
    return root


def entries(root: Path) -> dict[str, int]:
    """Returns complete store entry → time of its creation."""
    return {str(m.parent.relative_to(root)): m.stat().st_mtime_ns for m in root.glob("store/*/*/manifest.json")}


def test_a_run_writes_its_results(root):
    results = root / "runs/tiny/latest"
    assert results.resolve().name == "first"
    for stage in ("pretrain", "finetune"):
        manifest = json.loads((results / "data" / stage / "manifest.json").read_text())
        rows = load_dataset("parquet", data_files=str(results / "data" / stage / "shard-*.parquet"), split="train")
        assert len(rows) == manifest["num_samples"] == 24
        assert rows[0]["images"][0].size == (32, 32)
    model = HoneybeeForConditionalGeneration.from_pretrained(results / "model")
    assert model.config.num_image_tokens == 4
    scores = json.loads((results / "scores.json").read_text())
    assert {"pope", "mmbench", "shuffled"} <= set(scores)
    report = (results / "report.md").read_text()
    for text in ("| pope | all | accuracy |", "| blipcapfilt | 62 | 60 |", "image_corrupt"):
        assert text in report
    gallery = (results / "gallery-finetune.md").read_text()
    images = [line.split("](")[1].rstrip(")") for line in gallery.splitlines() if line.startswith("![")]
    assert len(images) == 8
    assert all((results / image).is_file() for image in images)


def test_a_run_publishes_its_artifacts(root):
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        found = {artifact.key: artifact for artifact in client.read_artifacts()}
    for name in ("mixture", "rejects", "duplicates", "gallery"):
        assert {f"tiny-pretrain-{name}", f"tiny-finetune-{name}"} <= set(found)
    assert {"tiny-loss-curve", "tiny-scores", "tiny-scores-history", "tiny-results"} <= set(found)
    for stage in ("pretrain", "finetune"):
        assert found[f"tiny-{stage}-progress"].data == 100.0
        assert found[f"tiny-{stage}-progress"].description.startswith(f"{stage}: step 3 of 3, loss ")
    assert "data:image/png;base64," in found["tiny-finetune-gallery"].data
    report = found["tiny-results"].data
    assert "# tiny, run first\n" in report and "![loss and learning rate](data:image/" in report
    assert "file://" not in report and "](report/" not in report and "](predictions)" not in report


def test_a_second_run_rebuilds_nothing(root):
    from flows.rebuild_dataset import rebuild_dataset
    from flows.train_honeybee import train_honeybee

    before = entries(root)
    train_honeybee(str(root / "tiny.yaml"), "second")
    assert entries(root) == before
    assert (root / "runs/tiny/latest").resolve().name == "second"
    rebuild_dataset(str(root / "tiny.yaml"))
    assert entries(root) == before


def test_a_run_finds_flipped_bits_in_what_an_earlier_run_left_and_makes_it_again(root, caplog):
    from flows.train_honeybee import train_honeybee

    store = root / "store"
    damaged = [
        next(store.glob("backbones/*/output/vision/config.json")),
        next(store.glob("corpora/*/POPE/images/*")),
        next(store.glob("examples/*/rejects-*.parquet")),
        next(store.glob("tokenizers/*/tokenizer_config.json")),
        *store.glob("models/*/output/model.safetensors"),
        next(store.glob("models/*/output/manifest.json")),
        next(store.glob("scores/*/output/scores.json")),
        next(store.glob("scores/*/output/pope.predictions.jsonl")),
        next(store.glob("scores/*/manifest.json")),
    ]
    metrics = next(store.glob("models/*/work/metrics.jsonl"))
    before = {path: path.read_bytes() for path in damaged}
    for path in [*damaged, metrics]:
        flip(path)
    logs: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: logs.append(record.getMessage())
    logging.getLogger("prefect").addHandler(handler)
    try:
        scores = train_honeybee(str(root / "tiny.yaml"), "repaired")
    finally:
        logging.getLogger("prefect").removeHandler(handler)
    text = "\n".join([*logs, caplog.text])
    assert scores == json.loads((root / "runs/tiny/first/scores.json").read_text())
    for path, data in before.items():
        assert path.read_bytes() == data, path
        if path.parents[2].name != "scores":  # of which only the manifest is named, since it is damaged itself
            assert f"{path} is damaged" in text or f"{path} has no checksum" in text, path
    assert metrics.with_name(".metrics.jsonl.damaged").is_file() and f"{metrics} is set aside" in text


@pytest.fixture
def edited_template(tmp_path, monkeypatch):
    """The templates of the project, with a changed one for VQAv2."""
    shutil.copytree(sets.ROOT, tmp_path / "templates")
    file = tmp_path / "templates/fine/vqav2.yaml"
    file.write_text(file.read_text().replace("{question}", "Look, then say: {question}"))
    monkeypatch.setattr(sets, "ROOT", tmp_path / "templates")


@pytest.mark.usefixtures("edited_template")
def test_a_changed_template_rebuilds_its_dataset_and_the_shards(root):
    from flows.rebuild_dataset import rebuild_dataset

    before = entries(root)
    shards = rebuild_dataset(str(write_tiny(root, {"name": "reworded"})))["finetune"].shards
    new = [name.split("/")[1] for name in entries(root).keys() - before.keys()]
    assert sorted(new) == ["examples", "shards"]
    assert {name: made for name, made in entries(root).items() if name in before} == before
    rows = pq.read_table(sorted(shards.glob("shard-*.parquet"))).to_pylist()
    assert any(turn["user"].startswith("Look, then say: ") for row in rows for turn in row["turns"])
    assert "### Rows without an example" in (root / "runs/reworded/latest-build/report.md").read_text()


def test_logging_more_often_does_not_retrain(root):
    from flows.train_honeybee import train_honeybee

    before = entries(root)
    train_honeybee(str(write_tiny(root, {"name": "chatty", "pretrain/train/log_every": 2, "launch/threads": 2})), "one")
    assert entries(root) == before


@pytest.fixture(scope="module")
def padded(root, tmp_path_factory) -> tuple[list[str], dict]:
    """The new store entries and the scores of a run with a different image fit, evaluated while it trains."""
    from flows.train_honeybee import train_honeybee

    asked = {
        "evaluate": {"benchmarks": ["mmbench", "pope"], "questions": 6},
        "evaluate_every": 2,
        "learning_rate": 1e-5,
    }
    changes = {f"finetune/train/{key}": value for key, value in asked.items()}
    changes |= {"name": "padded", "model/image_fit": "pad", "launch/peak_tflops": 0.1}
    before = entries(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        Path("pad").mkdir()  # a directory named like the setting must not be taken for a model
        scores = train_honeybee(str(write_tiny(root, changes)), "one")
    return sorted(entries(root).keys() - before.keys()), scores


def test_a_different_image_fit_retrains_and_reevaluates(root, padded):
    new, _ = padded
    assert [name.split("/")[1] for name in new] == ["models", "models", "scores"]
    fits = [
        json.loads((root / name / "manifest.json").read_text())["key"].get("init", {}).get("image_fit") for name in new
    ]
    assert sorted(fits, key=str) == [None, None, "pad"]
    assert '"fit": "pad"' in (root / "runs/padded/one/model/processor_config.json").read_text()


def test_a_model_is_evaluated_during_training(root, padded):
    _, scores = padded
    work = (root / "runs/padded/one/model").resolve().parent / "work"
    lines = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
    found = [{name for name in line if name.startswith("eval/")} for line in lines]
    assert [bool(names) for names in found] == [False, True, False]
    assert {"eval/pope/accuracy", "eval/mmbench/accuracy"} <= found[1]
    assert all(line["mfu"] > 0 for line in lines)
    assert (root / "runs/padded/one/report/loss.png").stat().st_size > 0
    assert scores["pope"]["num_questions"] > 6  # after training, all questions are asked


def test_a_model_directory_is_evaluated(root):
    from flows.evaluate_honeybee import evaluate_honeybee

    before = entries(root)
    model, recipe = str(root / "runs/tiny/first/model"), str(root / "tiny.yaml")
    scores = evaluate_honeybee(model, recipe, run_id="again")
    assert scores == json.loads((root / "runs/tiny/first/scores.json").read_text())
    assert entries(root) == before
    again = root / "runs/tiny/again"
    assert (again / "model").resolve() == Path(model).resolve()
    assert json.loads((again / "scores.json").read_text()) == scores
    assert (root / "runs/tiny/latest").resolve().name != "again"  # `latest` only links to training runs


def test_a_model_is_evaluated_on_selected_benchmarks(root):
    from flows.evaluate_honeybee import evaluate_honeybee

    model, recipe = str(root / "runs/tiny/first/model"), str(root / "tiny.yaml")
    scores = evaluate_honeybee(model, recipe, ["pope"], "pope-only")
    complete = json.loads((root / "runs/tiny/first/scores.json").read_text())
    assert scores["pope"] == complete["pope"] and "mmbench" not in scores
    with pytest.raises(RecipeError, match=r"tiny has no benchmark gqa; evaluation\.benchmarks has mmbench, pope"):
        evaluate_honeybee(model, recipe, ["gqa"], "none")
    with pytest.raises(ModelError, match=r"no config\.json"):
        evaluate_honeybee(str(root), recipe, run_id="no-model")
    assert not (root / "runs/tiny/no-model").exists()


def test_answers_are_judged_with_the_key_of_a_prefect_secret(root):
    from prefect.blocks.system import Secret

    from flows.evaluate_honeybee import evaluate_honeybee

    Secret(value=KEY).save("judge-key", overwrite=True)
    model = str(root / "runs/tiny/first/model")
    with serving(lambda body: "0.4") as server:
        changes = {
            "name": "judged",
            "evaluation/benchmarks": {"mm_vet": {"path": "MM-Vet", "images": "MM-Vet/images"}},
            "evaluation/shuffled_control": False,
            "evaluation/judge": {"url": server.url, "model": "any", "secret": "judge-key"},
        }
        recipe = str(write_tiny(root, changes))
        scores = evaluate_honeybee(model, recipe, run_id="one")["mm_vet"]
        asked = len(server.requests)
    assert scores["score"] == pytest.approx(40) and asked == scores["num_answered"] > 0
    assert set(server.keys) == {f"Bearer {KEY}"}
    text = (root / "runs/judged/one/mistakes-mm_vet.md").read_text()
    assert f"{asked} of {asked} answers" in text and "parsed as: 0.4; credit 0.4" in text
    directories = [root / "store/scores", root / "store/judge-replies", root / "runs/judged"]
    files = [path for directory in directories for path in directory.rglob("*") if path.is_file()]
    assert files and not any(KEY.encode() in path.read_bytes() for path in files)
    changes["evaluation/judge"]["secret"] = "no-such-key"
    changes["name"] = "unjudged"
    with pytest.raises(RecipeError, match="Prefect has no secret block 'no-such-key'"):
        evaluate_honeybee(model, str(write_tiny(root, changes)), run_id="one")


def test_runs_are_compared_and_have_a_score_history(root):
    from flows.report.score_comparison import columns, details, read_scores
    from flows.report.score_report import history

    runs = [read_scores(str(root / "runs/tiny" / name)) for name in ("first", "pope-only")]
    rows = columns(runs)
    assert [row["model"] for row in rows[:3]] == ["tiny/first", "tiny/pope-only", "paper, C-7B-M144"]
    f1 = f"{runs[0][1]['pope']['f1']:.1f}"
    assert [row["POPE"] for row in rows[:3]] == [f1, f1, "83.2"]
    assert (rows[1]["MMB"], rows[2]["MMB"]) == ("", "70.1")
    same = [row for row in details(runs) if row["benchmark"] == "pope"]
    assert same and {row["difference"] for row in same} == {"+0.0"}
    assert {"first", "again", "pope-only"} <= {row["run"] for row in history(root / "runs/tiny")}


def test_mistakes_are_shown_with_their_images(root):
    run = root / "runs/tiny/first"
    text = (run / "mistakes-pope.md").read_text()
    wrong, marked = map(int, re.search(r"\n([\d,]+) of ([\d,]+) answers", text).groups())
    scores = json.loads((run / "scores.json").read_text())["pope"]
    assert marked == scores["num_scored"]
    confusions = [part["confusion"] for part in scores["splits"].values()]
    assert wrong == sum(part["fp"] + part["fn"] for part in confusions)
    images = re.findall(r"\]\((report/mistakes-pope-\d+\.png)\)", text)
    assert len(images) == text.count("#### ") > 0
    assert all((run / name).stat().st_size > 0 for name in images)
    assert "[pope](mistakes-pope.md)" in (run / "report.md").read_text()
    assert (run / "report/scores.png").stat().st_size > 0


def test_a_conversation_about_an_image(root):
    from model.generation.chat import Chat

    image = next((root / "store/corpora").glob("*/POPE/images/*"))
    talk = Chat.load(root / "runs/tiny/first/model")
    "".join(talk.ask("Is there a circle?", [image], max_new_tokens=4))
    "".join(talk.ask("And a square?", max_new_tokens=4))
    assert [message["role"] for message in talk.messages] == ["user", "assistant"] * 2


def test_an_invalid_recipe_fails_the_run_before_any_work(prefect, tmp_path):
    from flows.train_honeybee import train_honeybee

    path = write_tiny(tmp_path, {"finetune/data/chat": "honeybear"})
    with pytest.raises(RecipeError, match="honeybear"):
        train_honeybee(str(path), "one")
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_rank_fails_the_run_with_its_own_error(root):
    from flows.launch.nodes import LaunchError
    from flows.train_honeybee import train_honeybee

    path = write_tiny(root, {"name": "diverging", "pretrain/train/learning_rate": 1e30})
    with pytest.raises(LaunchError, match="is not finite"):
        train_honeybee(str(path), "one")
