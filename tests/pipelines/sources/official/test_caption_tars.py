"""Tars read by offset: the header walk compared with `tarfile`, and good and bad samples."""

import io
import json
import os
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.images import read_image_bytes

from pipelines.sources import SourceError, get
from pipelines.sources.formats.tar import Tar


def write_tar(path, members, **options):
    """members: (name, data) or (TarInfo, data)."""
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def read(root):
    return [row for batch in get("coyo100m").read(root) for row in batch.to_pylist()]


NAMES = st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=60)


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@settings(max_examples=25, deadline=None)
@given(
    names=st.lists(st.lists(NAMES, min_size=1, max_size=4).map("/".join), max_size=5),
    size=st.sampled_from([0, 7, 512, 40_000]),
)
def test_members_equal_those_of_tarfile(tmp_path_factory, layout, names, size):
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    if layout == tarfile.USTAR_FORMAT:
        names = [name.encode("ascii", "replace").decode()[:90] for name in names]
    mtime = 1.5 if layout == tarfile.PAX_FORMAT else 1  # a fraction needs a pax header
    infos = [tarfile.TarInfo(name.strip("/") or "x") for name in names]
    for info in infos:
        info.mtime = mtime
    write_tar(path, [(info, b"x" * size) for info in infos], format=layout)
    with Tar(path) as ours, tarfile.open(path) as theirs:
        assert [member[:3] for member in ours.members()] == [(m.name, m.offset_data, m.size) for m in theirs]


def test_links_and_directories(tmp_path):
    link = tarfile.TarInfo("a.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    directory = tarfile.TarInfo("folder")
    directory.type = tarfile.DIRTYPE
    write_tar(tmp_path / "a.tar", [(directory, b""), (link, b""), ("a.txt", b"a cup")])
    with Tar(tmp_path / "a.tar") as tar:
        assert [(member.name, member.is_file) for member in tar.members()] == [("a.jpg", False), ("a.txt", True)]
    assert [row["reject"] for row in read(tmp_path)] == ["bad_member"]


def test_samples(tmp_path):
    (tmp_path / "deep").mkdir()
    write_tar(
        tmp_path / "deep" / "00000.tar",
        [("./0.jpg", b"jpeg bytes"), ("./0.txt", b" a cup\n"), ("./0.json", b"{}"),
         ("1.json", json.dumps({"caption": "a dog"}).encode()), ("1.seg.png", b"mask"), ("1.PNG", b"png bytes")],
    )  # fmt: skip
    write_tar(tmp_path / "a.tar", [("x/2.webp", b"webp bytes"), ("x/2.txt", "ein Käfer".encode())])
    rows = read(tmp_path)
    assert [row["caption"] for row in rows] == ["ein Käfer", "a cup", "a dog"]
    assert [read_image_bytes(tmp_path, row["image"]) for row in rows] == [b"webp bytes", b"jpeg bytes", b"png bytes"]
    assert rows[1]["image"].startswith("deep/00000.tar#")


def test_rejects(tmp_path):
    cases = {
        "no_image": [("a.txt", b"a cup")],
        "no_caption": [("b.jpg", b"x")],
        "empty_caption": [("c.jpg", b"x"), ("c.txt", b" \n")],
        "not_utf8": [("d.jpg", b"x"), ("d.txt", b"caf\xe9")],
        "bad_json": [("e.jpg", b"x"), ("e.json", b"{")],
        "missing_field": [("f.jpg", b"x"), ("f.json", b"{}")],
        "bad_path": [("/etc/g.jpg", b"x"), ("/etc/g.txt", b"a cup")],
        "repeated_member": [("h.jpg", b"x"), ("h.txt", b"a cup"), ("h.png", b"x")],
        "bad_member": [("README", b"x")],
        "text_too_large": [("i.jpg", b"x"), ("i.txt", b"x" * (1 << 20) + b"x")],
    }
    dots = [("../j.jpg", b"x"), ("../j.txt", b"a cup")]
    late = [("c.txt", b"after others")]
    write_tar(tmp_path / "a.tar", [member for members in [*cases.values(), dots, late] for member in members])
    rows = read(tmp_path)
    assert [row["reject"] for row in rows] == [*cases, "bad_path", "duplicate_id"]
    assert all(row["image"] is None and row["caption"] is None and row["detail"] for row in rows)
    assert "'c.txt' is ' \\n'" in rows[2]["detail"]


def test_errors_name_the_tar_and_the_byte(tmp_path):
    path = tmp_path / "a.tar"
    write_tar(path, [("0.jpg", b"x" * 2000), ("0.txt", b"a cup")])
    good = path.read_bytes()
    cases = {
        good[:1000]: "byte 0: a member of 2000 bytes extends past the end",
        good[: 512 + 2048]: "byte 2560: the file ends without the end-of-archive block",
        good[:2560] + b"y" * 512 + good[3072:]: "byte 2560: the tar header has the invalid number",
        good[:2560] + b"y" + good[2561:]: "byte 2560: this is not a tar header",
        b"": "byte 0: the file ends without",
        b"{}" * 1000: "byte 0: the tar header has the invalid number",
        bytes(10240): "has no samples",
    }
    for content, message in cases.items():
        path.write_bytes(content)
        with pytest.raises(SourceError, match=message) as error:
            read(tmp_path)
        assert str(path) in str(error.value)


def test_a_tar_whose_name_is_not_utf8(tmp_path):
    write_tar(tmp_path / os.fsdecode(b"caf\xe9.tar"), [("a.jpg", b"x"), ("a.txt", b"a cup")])
    with pytest.raises(SourceError, match=r"caf\\udce9.tar.*rename it"):
        read(tmp_path)


def test_hidden_members_and_tars_are_skipped_and_counted(tmp_path):
    real = [("./0.jpg", b"x"), ("./0.txt", b"a cup"), ("./1.jpg", b"x"), ("./1.txt", b"a dog")]
    mac = [member for name, data in real for member in ((f"./._{name[2:]}", b"\0\5\x16\7"), (name, data))]
    write_tar(tmp_path / "a.tar", [*mac, ("__MACOSX/2.jpg", b"x"), ("d/.DS_Store", b"x")])
    (tmp_path / "._a.tar").write_bytes(b"\0\5\x16\7")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    write_tar(tmp_path / ".ipynb_checkpoints" / "a.tar", real)
    *batches, last = get("coyo100m").read(tmp_path)
    assert [row["caption"] for batch in batches for row in batch.to_pylist()] == ["a cup", "a dog"]
    skipped = json.loads(last.schema.metadata[b"skipped"])
    assert {reason: each["count"] for reason, each in skipped.items()} == {"hidden_file": 2, "hidden_member": 6}
    assert skipped["hidden_member"]["examples"][0] == "a.tar: ./._0.jpg"


def test_tars_in_linked_directories_are_read(tmp_path):
    for name in ("elsewhere", "root/real"):
        (tmp_path / name).mkdir(parents=True)
        write_tar(tmp_path / name / "0.tar", [("0.jpg", b"x"), ("0.txt", name.encode())])
    (tmp_path / "root" / "linked").symlink_to("../elsewhere")
    rows = read(tmp_path / "root")
    assert [row["caption"] for row in rows] == ["elsewhere", "root/real"]
    assert [read_image_bytes(tmp_path / "root", row["image"]) for row in rows] == [b"x", b"x"]


@pytest.mark.parametrize("name", ["b.tar", "b.tar.gz", "b.tgz"])
@pytest.mark.parametrize(("mode", "kind"), [("gz", "gzip"), ("bz2", "bzip2"), ("xz", "xz")])
def test_a_compressed_tar_is_called_so(tmp_path, name, mode, kind):
    write_tar(tmp_path / "a.tar", [("0.jpg", b"x"), ("0.txt", b"a cup")])
    with tarfile.open(tmp_path / name, f"w:{mode}") as tar:
        tar.addfile(tarfile.TarInfo("a.txt"), io.BytesIO(b""))
    with pytest.raises(SourceError, match=rf"{name} is a tar compressed with {kind}: .*unpack"):
        read(tmp_path)


def test_a_duplicate_key_of_a_member_rejects_its_sample(tmp_path):
    write_tar(tmp_path / "a.tar", [("0.jpg", b"x"), ("0.json", b'{"caption": "a", "caption": "b"}')])
    assert [row["reject"] for row in read(tmp_path)] == ["duplicate_key"]
