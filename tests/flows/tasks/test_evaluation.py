"""The official files that an evaluation depends on."""

from flows.tasks.evaluation import official_files


def test_official_files_with_the_same_name_in_different_folders_are_distinct(tmp_path):
    for name in ("color/1.txt", "count/1.txt", "count/1.jpg", "problems.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    files = official_files(tmp_path)
    assert list(files) == ["color/1.txt", "count/1.txt", "problems.json"]
    assert files["count/1.txt"] == tmp_path / "count" / "1.txt"
    assert official_files(tmp_path / "problems.json") == {"problems.json": tmp_path / "problems.json"}
