"""The held-out benchmarks: scenes never seen in training, balanced answers, and no advantage without the image."""

import ast
import base64
import csv
import io
import json
import random
from collections import Counter, defaultdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.sample_corpus import _scenes, write_sample
from pipelines.sample_corpus.world.scenes import COLORS

FILES = ("random", "popular", "adversarial", "relation")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("sample") / "corpus"
    write_sample(directory, scenes=16, held_out=120, seed=0)
    return directory


def pope(corpus: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (corpus / "POPE" / f"coco_pope_{name}.json").open()]


def mmbench(corpus: Path) -> list[dict]:
    with (corpus / "MMBench" / "mmbench_dev.tsv").open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def mme(corpus: Path) -> list[tuple[Path, str, str]]:
    """Returns (text file, question, answer) tuples."""
    files = sorted((corpus / "MME").glob("*/*.txt"))
    return [(file, *line.split("\t")) for file in files for line in file.read_text().splitlines()]


def single_choices(corpus: Path) -> dict[str, list[tuple[str, tuple[str, ...], int]]]:
    """Returns benchmark → (question, options, index of the correct one) tuples."""
    seed = json.loads((corpus / "SEED-Bench" / "SEED-Bench.json").read_text())["questions"]
    science = json.loads((corpus / "ScienceQA-test" / "problems.json").read_text()).values()
    return {
        "seed_bench": [
            (row["question"], tuple(row[f"choice_{letter}"] for letter in "abcd"), "ABCD".index(row["answer"]))
            for row in seed
            if row["data_type"] == "image"
        ],
        "with image": [(p["question"], tuple(p["choices"]), p["answer"]) for p in science if p["image"]],
        "with text": [(p["question"], tuple(p["choices"]), p["answer"]) for p in science if p["hint"]],
        "with neither": [
            (p["question"], tuple(p["choices"]), p["answer"]) for p in science if not p["image"] and not p["hint"]
        ],
    }


def mmmu(corpus: Path, subject: str) -> list[dict]:
    return pq.read_table(corpus / "MMMU" / subject / "validation-00000-of-00001.parquet").to_pylist()


def test_held_out_scenes_are_not_in_training():
    held_out, training = _scenes(3000, 200, 0)
    assert (len(held_out), len(training)) == (200, 3000)
    assert not set(held_out) & set(training)
    assert not {scene.mirrored() for scene in held_out} & set(training)


@pytest.mark.parametrize("name", FILES)
def test_every_wording_has_yes_and_no_equally_often(corpus, name):
    rows = pope(corpus, name)
    by_wording = defaultdict(Counter)
    for row in rows:
        by_wording[row["text"]][row["label"]] += 1
        assert (corpus / "POPE" / "images" / row["image"]).is_file()
    assert len(rows) >= 60 and len({(row["image"], row["text"]) for row in rows}) == len(rows)
    assert [row["question_id"] for row in rows] == list(range(1, len(rows) + 1))
    assert all(counts["yes"] == counts["no"] for counts in by_wording.values())


def test_pope_answers_match_the_images(corpus):
    seen = 0
    for row in pope(corpus, "random"):
        image = Image.open(corpus / "POPE" / "images" / row["image"])
        present = colors_of(image)
        color = row["text"].split()[3]
        if row["label"] == "yes":
            assert color in present
        seen += color not in present
    assert seen > 10


def test_adversarial_questions_name_a_color_in_the_image(corpus):
    for row in pope(corpus, "adversarial"):
        image = Image.open(corpus / "POPE" / "images" / row["image"])
        assert row["text"].split()[3] in colors_of(image)


def test_mme_asks_both_images_of_a_pair_the_same_questions(corpus):
    rows = mme(corpus)
    by_task = Counter(file.parent.name for file, _, _ in rows)
    assert set(by_task) == {"existence", "count", "position", "color"} and set(by_task.values()) == {40}
    by_wording, by_image = defaultdict(Counter), defaultdict(list)
    for file, question, answer in rows:
        assert question.endswith("? Please answer yes or no.") and file.with_suffix(".jpg").is_file()
        by_wording[file.parent.name, question][answer] += 1
        by_image[file].append(answer)
    assert all(counts["Yes"] == counts["No"] for counts in by_wording.values())
    assert all(answers == ["Yes", "No"] for answers in by_image.values())


def test_mme_answers_match_the_images(corpus):
    seen = Counter()
    for file, question, answer in mme(corpus):
        if file.parent.name in ("existence", "color"):
            color = question.split()[3]
            present = color in colors_of(Image.open(file.with_suffix(".jpg")))
            assert present or answer == "No"
            seen[present] += 1
    assert seen[True] > 40 and seen[False] > 10


def test_relations_have_opposite_answers_in_mirror_images(corpus):
    by_wording = defaultdict(list)
    for row in pope(corpus, "relation"):
        by_wording[row["text"]].append(row["label"])
    assert all(sorted(labels)[: len(labels) // 2] == ["no"] * (len(labels) // 2) for labels in by_wording.values())


def test_four_way_answers_cannot_be_guessed(corpus):
    """Every option of a wording and option set is correct equally often, and so is every letter."""
    answers = defaultdict(Counter)
    for row in mmbench(corpus):
        options = frozenset(row[letter] for letter in "ABCD")
        assert len(options) == 4
        answers[row["question"], options][row[row["answer"]]] += 1
    assert len(answers) > 10
    for (_, options), counts in answers.items():
        assert set(counts) == options and len(set(counts.values())) == 1
    for circular in (False, True):
        letters = Counter(row["answer"] for row in mmbench(corpus) if circular or int(row["index"]) < 1_000_000)
        assert len(letters) == 4 and len(set(letters.values())) == 1


@pytest.mark.parametrize("part", ["seed_bench", "with image", "with text"])
def test_single_choices_cannot_be_guessed(corpus, part):
    rows = single_choices(corpus)[part]
    answers = defaultdict(Counter)
    for question, options, right in rows:
        assert len(set(options)) == 4
        answers[question, frozenset(options)][options[right]] += 1
    assert len(rows) >= 40 and len(answers) > 8
    for (_, options), counts in answers.items():
        assert set(counts) == options and len(set(counts.values())) == 1
    letters = Counter(right for _, _, right in rows)
    assert len(letters) == 4 and len(set(letters.values())) == 1


def test_the_letters_of_additions_alternate(corpus):
    rows = single_choices(corpus)["with neither"]
    assert [right for _, _, right in rows] == [0, 1, 2, 3] * 2
    for question, options, right in rows:
        _, _, first, _, second = question.removesuffix("?").split()
        assert options[right] == str(int(first) + int(second)) and len(set(options)) == 4


def test_grades_do_not_reveal_the_letter(corpus):
    science = json.loads((corpus / "ScienceQA-test" / "problems.json").read_text()).values()
    by_grade = defaultdict(Counter)
    for problem in science:
        by_grade[problem["grade"]][problem["answer"]] += 1
    assert len(by_grade) == 12
    assert all(len(counts) == 4 and len(set(counts.values())) == 1 for counts in by_grade.values())


def test_colors_in_seed_bench_match_the_images(corpus):
    rows = json.loads((corpus / "SEED-Bench" / "SEED-Bench.json").read_text())["questions"]
    asked = [row for row in rows if row["question"].startswith("What color")]
    assert len(asked) >= 8 and {row["question_id"] for row in rows if row["data_type"] == "video"} == {"v1", "v2"}
    for row in asked:
        image = Image.open(corpus / "SEED-Bench" / "SEED-Bench-image" / row["data_id"])
        assert row[f"choice_{row['answer'].lower()}"] in colors_of(image)


def test_circular_rows_rotate_the_options(corpus):
    groups = defaultdict(list)
    for row in mmbench(corpus):
        groups[int(row["index"]) % 1_000_000].append(row)
    assert sorted(groups) == list(range(len(groups)))
    for rows in groups.values():
        assert sorted(int(row["index"]) // 1_000_000 for row in rows) == [0, 1, 2, 3]
        assert len({(row["question"], row["image"], row[row["answer"]]) for row in rows}) == 1
        assert len({row["answer"] for row in rows}) == 4
        image = Image.open(io.BytesIO(base64.b64decode(rows[0]["image"])))
        assert image.size == (32, 32)


def test_colors_in_mmbench_match_the_images(corpus):
    rows = [row for row in mmbench(corpus) if row["question"].startswith("What color")]
    assert len(rows) >= 16
    for row in rows:
        assert row[row["answer"]] in colors_of(Image.open(io.BytesIO(base64.b64decode(row["image"]))))


def test_two_images_are_asked_in_both_orders(corpus):
    rows = mmmu(corpus, "Sociology")
    assert len(rows) == 16
    for one, other in zip(rows[::2], rows[1::2], strict=True):
        assert one["question"] == other["question"] and (one["answer"], other["answer"]) == ("A", "B")
        assert (one["image_1"]["bytes"], one["image_2"]["bytes"]) == (
            other["image_2"]["bytes"],
            other["image_1"]["bytes"],
        )
        color = one["question"].split()[-2]
        assert color in colors_of(Image.open(io.BytesIO(one["image_1"]["bytes"])))


def test_mmmu_answers_cannot_be_guessed(corpus):
    for subject in ("Art", "Design", "Geography", "Math"):
        rows = mmmu(corpus, subject)
        by_wording = defaultdict(Counter)
        for row in rows:
            options = ast.literal_eval(row["options"])
            by_wording[row["question"], frozenset(options)][options["ABCD".index(row["answer"])]] += 1
        assert all(len(set(counts.values())) == 1 and len(counts) == 4 for counts in by_wording.values())
        assert len(set(Counter(row["answer"] for row in rows).values())) == 1
    words = Counter(row["answer"] for row in mmmu(corpus, "Literature"))
    assert len(words) == 4 and len(set(words.values())) == 1


def test_mm_vet_answers_cannot_be_guessed(corpus):
    rows = json.loads((corpus / "MM-Vet" / "mm-vet.json").read_text()).values()
    by_wording = defaultdict(Counter)
    for row in rows:
        assert (corpus / "MM-Vet" / "images" / row["imagename"]).is_file()
        by_wording[row["question"]][row["answer"]] += 1
    assert len(rows) == 96
    for wording in ("Which word is printed?", "How many shapes are there?"):
        assert len(by_wording[wording]) == 4 and len(set(by_wording[wording].values())) == 1


def test_open_questions_have_a_different_answer_in_the_mirror_image(corpus):
    folder = corpus / "LLaVA-Bench"
    questions, context, answers = (
        [json.loads(line) for line in (folder / f"{name}.jsonl").open()]
        for name in ("questions", "context", "answers_gpt4")
    )
    assert [row["question_id"] for row in questions] == [row["question_id"] for row in answers]
    assert Counter(row["category"] for row in questions) == dict.fromkeys(("conv", "detail", "complex"), len(context))
    answer_of = {row["question_id"]: row["text"] for row in answers}
    by_wording = defaultdict(list)
    for row in questions:
        by_wording[row["text"]].append(answer_of[row["question_id"]])
    assert len(context) == 24
    for row in questions:
        if row["category"] == "complex":
            counts = Counter(answer.split()[-1] for answer in by_wording[row["text"]])
            assert counts["yes."] == counts["no."]
        assert len(set(by_wording[row["text"]])) > 1
    asked = [json.loads(line) for line in (corpus / "OwlEval" / "questions.jsonl").open()]
    assert [row["question_id"] for row in asked] == list(range(1, 53))
    assert all((corpus / "OwlEval" / "cases" / row["image"]).is_file() for row in asked)


def test_a_very_small_held_out_set_still_has_questions(tmp_path):
    for seed in range(3):
        write_sample(tmp_path / str(seed), scenes=8, held_out=16, seed=seed)
        assert all(pope(tmp_path / str(seed), name) for name in FILES)
        assert mmbench(tmp_path / str(seed))
        assert {file.parent.name for file, _, _ in mme(tmp_path / str(seed))} == {
            "existence",
            "count",
            "position",
            "color",
        }
        few = single_choices(tmp_path / str(seed))
        assert few["seed_bench"] and few["with image"]
        assert any(mmmu(tmp_path / str(seed), subject) for subject in ("Art", "Design", "Geography", "Math"))
        assert mmmu(tmp_path / str(seed), "Sociology")
        for file in ("MM-Vet/mm-vet.json", "LLaVA-Bench/questions.jsonl", "OwlEval/questions.jsonl"):
            assert (tmp_path / str(seed) / file).stat().st_size > 2


def test_shuffled_images_do_not_reveal_the_answers(corpus):
    """A perfect model that sees shuffled images is correct half of the time."""
    rng = random.Random(0)
    for name in FILES[:3]:
        rows = pope(corpus, name)
        colors = {row["image"]: colors_of(Image.open(corpus / "POPE" / "images" / row["image"])) for row in rows}
        right = trials = 0
        for _ in range(20):
            shuffled = [row["image"] for row in rows]
            rng.shuffle(shuffled)
            for row, image in zip(rows, shuffled, strict=True):
                guess = "yes" if row["text"].split()[3] in colors[image] else "no"
                right += guess == row["label"]
                trials += 1
        assert 0.45 < right / trials < 0.55


def colors_of(image: Image.Image) -> set[str]:
    """Returns the colors of which an image has at least nine pixels."""
    counts: Counter[str] = Counter()
    for pixel in image.get_flattened_data():
        for name, value in COLORS.items():
            counts[name] += sum(abs(a - b) for a, b in zip(pixel, value, strict=True)) < 60
    return {name for name, count in counts.items() if count >= 9}
