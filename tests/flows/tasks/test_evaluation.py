"""The official files that an evaluation depends on."""

from support.damage import flip

from flows.tasks.evaluation import file_digests, official_files
from pipelines.core.store import FileDigests, Store


def test_official_files_with_the_same_name_in_different_folders_are_distinct(tmp_path):
    for name in ("color/1.txt", "count/1.txt", "count/1.jpg", "problems.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    files = official_files(tmp_path)
    assert list(files) == ["color/1.txt", "count/1.txt", "problems.json"]
    assert files["count/1.txt"] == tmp_path / "count" / "1.txt"
    assert official_files(tmp_path / "problems.json") == {"problems.json": tmp_path / "problems.json"}


def test_an_image_exchanged_with_equal_size_and_time_changes_what_scores_depend_on(tmp_path):
    (tmp_path / "images/deep").mkdir(parents=True)
    for name in ("a.jpg", "deep/b.jpg"):
        (tmp_path / "images" / name).write_bytes(b"bytes of an image")

    def contents() -> list[list[str]]:
        return file_digests(tmp_path / "images", FileDigests(Store(tmp_path / "store")))

    before = contents()
    assert [name for name, _ in before] == ["a.jpg", "deep/b.jpg"] and contents() == before
    flip(tmp_path / "images/deep/b.jpg")
    after = contents()
    assert after[0] == before[0] and after[1] != before[1]
