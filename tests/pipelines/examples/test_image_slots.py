"""Conversations with many images, one or none: their positions, rejects, and the pieces of split conversations."""

import dataclasses

import pyarrow as pa
import pytest
from support.example_settings import example_settings

from pipelines.core.arrow_files import read_table, write_batches
from pipelines.core.integrity import write_manifest
from pipelines.examples.beam_job import ExamplesJob, run_examples_job
from pipelines.examples.image_slots import image_rows
from pipelines.examples.render import Renderer
from pipelines.schema import ANNOTATIONS, IMAGES
from pipelines.tokens.chat_style import load_chat_template
from pipelines.tokens.tokenizer import load_tokenizer


def table(*rows):
    """Builds annotations from rows (turns, images), in which turns are (user, assistant) pairs."""
    return pa.Table.from_pylist(
        [
            {
                "row": index,
                "image": images[0] if images else None,
                "turns": [{"user": user, "assistant": assistant} for user, assistant in turns],
                "more_images": list(images[1:]) or None,
            }
            for index, (turns, images) in enumerate(rows)
        ],
        ANNOTATIONS["conversation"],
    )


def measured(names, bad=()):
    rows = [
        {"image": name, "reject": "image_corrupt", "detail": f"{name} is truncated"}
        if name in bad
        else {"image": name, "sha256": f"checksum of {name}", "num_bytes": 9, "width": 3, "height": 2}
        for name in sorted(names)
    ]
    return pa.Table.from_pylist(rows, IMAGES)


@pytest.fixture
def settings(tokenizer_dir):
    return example_settings(tokenizer_dir, "llava150k", "conversation", max_images=20)


SYSTEM = "A person talks with an assistant that looks at pictures and answers truthfully."


def shown(settings, example):
    """Decodes an example and returns its text after the system sentence."""
    tokenizer = load_tokenizer(settings.tokenizer).tokenizer
    text = tokenizer.decode(example["input_ids"], skip_special_tokens=False)
    assert text.count("<image>") == len(example["images"]) == len(example["image_sha256"])
    assert example["image_sha256"] == [f"checksum of {name}" for name in example["images"]]
    return text.removeprefix(f"<s>{SYSTEM}")


def test_images_are_at_their_placeholders_or_at_the_head(settings):
    rows = table(
        ([("What differs?", "all")], ["a", "b"]),
        ([("<image>Is it <image>?", "no"), ("And in\n<image>?", "yes")], ["a", "b", "c"]),
        ([("Hi", "Hello"), ("<image>\nThis?", "a cat")], ["a"]),
        ([("Hi", "Hello")], []),
        ([("Twice", "yes")], ["a", "a"]),
    )
    examples = Renderer(settings).render(rows, measured("abc")).examples.to_pylist()
    assert [shown(settings, example) for example in examples] == [
        "\nHuman: <image>\nHuman: <image>\nHuman: What differs?\nAI: all</s>",
        "\nHuman: <image>\nHuman: Is it <image>?\nAI: no</s>\nHuman: And in\n<image>?\nAI: yes</s>",
        "\nHuman: Hi\nAI: Hello</s>\nHuman: <image>\nHuman: This?\nAI: a cat</s>",
        "\nHuman: Hi\nAI: Hello</s>",
        "\nHuman: <image>\nHuman: <image>\nHuman: Twice\nAI: yes</s>",
    ]
    assert [example["images"] for example in examples] == [["a", "b"], ["a", "b", "c"], ["a"], [], ["a", "a"]]


def test_placeholders_without_an_image_are_text(settings):
    rows = table(
        ([("What is <image>?", "a tag")], []),
        ([("<image> <image> <image>", "three"), ("Two?", "<image>"), ("One?", "yes")], ["a", "b"]),
    )
    rendered = Renderer(settings).render(rows, measured("ab"))
    assert [(r["row"], r["turn"], r["reason"]) for r in rendered.rejects.to_pylist()] == [
        (0, 0, "special_token_in_text"), (1, 0, "special_token_in_text"), (1, 1, "special_token_in_text"),
    ]  # fmt: skip
    [example] = rendered.examples.to_pylist()
    assert shown(settings, example) == "\nHuman: <image>\nHuman: <image>\nHuman: One?\nAI: yes</s>"


def test_the_image_of_a_rejected_turn_is_dropped(settings):
    talk = [("See <image>", "one"), ("See <image></s>", "two"), ("See <image>", " "), ("See <image>", "four")]
    rendered = Renderer(settings).render(table((talk, "abcd")), measured("abcd"))
    [example] = rendered.examples.to_pylist()
    assert example["images"] == ["a", "d"]
    assert [r["reason"] for r in rendered.rejects.to_pylist()] == ["special_token_in_text", "empty_answer"]


def test_any_unusable_image_rejects_the_row(settings):
    talk = [("Q", "A")]
    rows = table((talk, "ab"), (talk, "axy"), (talk, "xa"), (talk, "b"))
    rendered = Renderer(settings).render(rows, measured("abxy", bad="xy"))
    assert [(r["row"], r["reason"], r["detail"]) for r in rendered.rejects.to_pylist()] == [
        (1, "image_corrupt", "x is truncated"), (2, "image_corrupt", "x is truncated"),
    ]  # fmt: skip
    assert rendered.counts["rows"] == {"read": 4, "examples": 2, "duplicates": 0, "rejects": {"image_corrupt": 2}}
    with pytest.raises(RuntimeError, match="image z is not in the images table"):
        Renderer(settings).render(table((talk, "az")), measured("a"))


def test_a_piece_of_a_split_conversation_has_the_images_of_the_preceding_turns(settings):
    names = [f"{i:02}" for i in range(12)]
    talk = [(f"Number {i} <image>, " + "why " * 12, "because " * 12) for i in range(11)]
    rendered = Renderer(settings).render(table((talk, names[:11]), (talk[:1], ["00"])), measured(names))
    *pieces, short = rendered.examples.to_pylist()
    assert len(pieces) > 2 and rendered.rejects.num_rows == 0
    seen = 0
    for piece in pieces:
        turns = len(piece["turns"])
        assert piece["images"] == names[: seen + turns]
        head, first, _ = shown(settings, piece).partition(f"\nHuman: Number {seen} ")
        assert head == "\nHuman: <image>" * seen and first
        assert piece["num_tokens"] - len(piece["images"]) <= 400
        seen += turns
    assert seen == 11 and short["images"] == ["00"]


def test_images_of_other_partitions_are_found_in_the_table_on_disk(settings, tmp_path):
    names = [f"{i:03}.jpg" for i in range(200)]
    rows = table(*(([(f"{i}? <image><image>", "yes")], [names[i], names[-1 - i]]) for i in range(200)))
    for name in ("annotations", "images", "out"):
        (tmp_path / name).mkdir()
    write_batches(tmp_path / "annotations" / "annotations-00000.arrow", rows.schema, rows.to_batches(64))
    write_batches(tmp_path / "images" / "images.arrow", IMAGES, measured(names, bad=names[7:8]).to_batches(32))
    for name in ("annotations", "images"):
        write_manifest(tmp_path / name, {})
    job = ExamplesJob(tmp_path / "annotations", tmp_path / "images", None, settings, partitions=6, out=tmp_path / "out")
    counts = run_examples_job(job, ["--runner=FnApiRunner"])
    assert sum(count["rows"]["examples"] for count in counts) == 198
    assert sum(count["num_images"] for count in counts) == 2 * 198
    for partition in range(6):
        for example in read_table(job.part("examples", partition, "arrow")).to_pylist():
            row = example["turns"][0]["row"]
            assert example["images"] == [names[row], names[-1 - row]]
            shown(settings, example)


def test_measures_are_found_by_name(tmp_path):
    names = [f"{i:03}" for i in range(0, 100, 2)]
    write_batches(tmp_path / "images.arrow", IMAGES, measured(names).to_batches(7))
    assert image_rows(tmp_path, ["098", "000", "001", "", "zzz", "014", "014"])["image"].to_pylist() == [
        "000", "014", "098",
    ]  # fmt: skip
    write_batches(tmp_path / "images.arrow", IMAGES, [])
    assert image_rows(tmp_path, ["000"]).num_rows == 0


def test_no_example_has_more_images_than_the_limit(settings):
    settings = dataclasses.replace(settings, max_images=2)
    rendered = Renderer(settings).render(table(([("Q", "A")], "ab"), ([("Q", "A")], "abc")), measured("abc"))
    assert [(r["row"], r["reason"]) for r in rendered.rejects.to_pylist()] == [(1, "too_many_images")]


def test_images_in_the_caption_style_have_no_separate_line(settings):
    settings = dataclasses.replace(settings, chat=load_chat_template("caption"))
    [example] = (
        Renderer(settings).render(table(([("See <image> and", "A.")], "ab")), measured("ab")).examples.to_pylist()
    )
    tokenizer = load_tokenizer(settings.tokenizer).tokenizer
    assert tokenizer.decode(example["input_ids"], skip_special_tokens=False) == "<s><image>See <image> andA.</s>"
