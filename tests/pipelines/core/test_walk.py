"""The one walker: hidden names, links, loops and patterns."""

import pytest

from pipelines.core.walk import WalkError, is_hidden, outside_links, walk


@pytest.fixture
def root(tmp_path):
    for name in ("root/a.json", "root/deep/b.json", "root/deep/c.txt", "elsewhere/inner/d.json", "single.json"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "root"


def names(listing, root):
    return [path.relative_to(root).as_posix() for path in listing.files]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("**/*.json", ["a.json", "deep/b.json"]),
        ("*.json", ["a.json"]),
        ("*/*", ["deep/b.json", "deep/c.txt"]),
        ("deep/**", ["deep/b.json", "deep/c.txt"]),
        ("**/deep/[bc].*", ["deep/b.json", "deep/c.txt"]),
        ("A.json", []),
    ],
)
def test_patterns_are_those_of_glob(root, pattern, expected):
    assert names(walk(root, pattern), root) == expected
    assert pattern.endswith("**") or sorted(path for path in root.glob(pattern) if path.is_file()) == [
        root / name for name in expected
    ]


@pytest.mark.parametrize("pattern", ["", "/a", "../*", "a/../b", "**.json", "a**/b"])
def test_patterns_that_leave_the_root_or_are_ambiguous(root, pattern):
    with pytest.raises(ValueError, match=r"component|absolute"):
        walk(root, pattern)


def test_hidden_names_are_listed_and_not_read(root):
    hidden = [
        ".ipynb_checkpoints/a-checkpoint.json", "deep/._b.json", "__MACOSX/a.json", "deep/.b.json.swp.json",
        "deep/@eaDir/b.json",
    ]  # fmt: skip
    for name in [*hidden, ".DS_Store", "deep/b.json~", "#a.json#"]:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("{}")
    found = walk(root, "**/*.json", "**/*.json~")
    assert names(found, root) == ["a.json", "deep/b.json"]
    assert found.hidden == (
        ".ipynb_checkpoints", "__MACOSX", "deep/._b.json", "deep/.b.json.swp.json", "deep/@eaDir", "deep/b.json~",
    )  # fmt: skip
    assert names(walk(root, ".ipynb_checkpoints/*.json"), root) == hidden[:1]  # named on purpose
    assert not any(map(is_hidden, ("a.json", "./a.jpg", "a/../b", "a.b/c~d", "x#y")))


def test_links_are_followed_and_every_file_is_listed_once(root, tmp_path):
    (root / "0_linked").symlink_to(tmp_path / "elsewhere")
    (root / "0_same").symlink_to("deep")
    (root / "0_copy.json").symlink_to("deep/b.json")
    (root / "single.json").symlink_to(tmp_path / "single.json")
    found = walk(root, "**/*.json")
    assert names(found, root) == ["0_linked/inner/d.json", "a.json", "deep/b.json", "single.json"]
    assert found.repeated == ("0_copy.json", "0_same")
    assert outside_links(root, names(found, root)) == ["0_linked/inner/d.json", "single.json"]


def test_links_below_a_linked_directory_are_followed_once(root, tmp_path):
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(root)
    found = walk(root, "**/*.json")
    assert names(found, root) == ["a.json", "deep/b.json", "linked/inner/d.json"]
    assert found.repeated == ("linked/back",)


@pytest.mark.parametrize("target", ["..", ".", "../..", "loop", "nowhere"])
def test_loops_and_dangling_links_are_errors_that_name_them(root, target):
    (root / "deep" / "loop").symlink_to(target)
    with pytest.raises(WalkError, match=r"deep/loop links to .*(remove it|Repair)"):
        walk(root, "**/*.json")


def test_a_directory_that_cannot_be_listed_is_an_error(root, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(WalkError, match="cannot be listed: Permission denied"):
        walk(root, "*")
