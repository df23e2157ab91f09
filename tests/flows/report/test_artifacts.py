"""The artifact of a report has all that a browser needs."""

from pathlib import Path

import pytest
from support.images import encode, photo

from flows.report.artifacts import self_contained
from pipelines.core import text_tables


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "run/report").mkdir(parents=True)
    (tmp_path / "run/report/loss.png").write_bytes(encode(photo(40, 30), "PNG"))
    (tmp_path / "run/recipe.yaml").touch()
    (tmp_path / "secret.png").write_bytes(encode(photo(40, 30), "PNG"))
    return tmp_path / "run"


def shown(directory: Path, text: str, **limit: int) -> str:
    (directory / "report.md").write_text(text)
    first, _, rest = self_contained(directory / "report.md", **limit).partition("\n\n")
    assert first == f"Directory: `{directory}`"
    return rest


def test_images_are_embedded_and_links_to_files_are_names(directory):
    text = shown(directory, "Recipe: [recipe.yaml](recipe.yaml) · [all](report)\n\n![loss](report/loss.png)\n")
    before, _, image = text.partition("![loss](data:image/")
    assert before == "Recipe: `recipe.yaml` · all (`report`)\n\n"
    assert image.partition(";")[0] in ("png", "jpeg") and image.endswith(")\n")


def test_images_beyond_the_limit_are_named(directory):
    one = len(shown(directory, "![loss](report/loss.png)"))
    text = shown(directory, "![loss](report/loss.png) ![again](report/loss.png)", limit=one)
    assert text.count("data:image/") == 1 and text.endswith(") again: `report/loss.png`")


@pytest.mark.parametrize(
    "text",
    [
        "![x](../secret.png)",
        "![x](/etc/hostname)",
        "[x](https://example.org/a)",
        "[x](javascript:alert(1))",
        "![x](report/missing.png)",
        text_tables.markdown([{"text": "![x](report/loss.png) [y](recipe.yaml)"}]),
    ],
)
def test_texts_of_the_data_and_files_elsewhere_stay_as_they_are(directory, text):
    assert shown(directory, text) == text
