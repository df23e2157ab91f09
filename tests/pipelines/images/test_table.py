"""Image references, guarded decoding, and the incremental images table."""

import errno
import hashlib
import io
import os
import tarfile
import unicodedata
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile
from support.images import png_header, read_image_bytes

from pipelines.core.errors import ImageRefError
from pipelines.images.decode import MAX_PIXELS, decode, measure
from pipelines.images.doubts import Doubts
from pipelines.images.read_range import read_range
from pipelines.images.references import ImageRoot
from pipelines.images.table import identities, images_table
from pipelines.schema import IMAGES


def encoded(size=(40, 30), kind="JPEG", mode="RGB"):
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def reason(call, *arguments):
    with pytest.raises(ImageRefError) as caught:
        call(*arguments)
    return caught.value.reason


@pytest.fixture
def root(tmp_path):
    images = tmp_path / "images"
    (images / "deep").mkdir(parents=True)
    (images / "a.jpg").write_bytes(encoded())
    (images / "deep" / "b.png").write_bytes(encoded((7, 9), "PNG"))
    (tmp_path / "outside.jpg").write_bytes(encoded())
    return images


def test_references_below_the_root_are_read(root):
    (root / "link.jpg").symlink_to(root / "deep" / "b.png")
    (root / "linked").symlink_to(root / "deep")
    assert read_image_bytes(root, "a.jpg") == (root / "a.jpg").read_bytes()
    inside = (root / "deep" / "b.png").read_bytes()
    for image in ("deep/b.png", "./deep/b.png", "deep//b.png", "link.jpg", "linked/b.png"):
        assert read_image_bytes(root, image) == inside


def test_a_root_that_is_a_symbolic_link_is_followed(root, tmp_path):
    (tmp_path / "root").symlink_to(root)
    assert read_image_bytes(tmp_path / "root", "a.jpg") == (root / "a.jpg").read_bytes()


def test_references_outside_the_root_are_rejected(root, tmp_path):
    """A link that lies on the disk is the owner's and is followed, unless links are refused."""
    (root / "out.jpg").symlink_to(tmp_path / "outside.jpg")
    (root / "out").symlink_to(tmp_path)
    (tmp_path / "images-too").mkdir()
    (tmp_path / "images-too" / "c.jpg").write_bytes(encoded())
    (root / "sibling").symlink_to(tmp_path / "images-too")
    for image in ("../outside.jpg", "deep/../../outside.jpg", "deep/../a.jpg", "/etc/passwd", str(root / "a.jpg"),
                  "out/../outside.jpg", "sibling/../a.jpg", "../x.tar#0:1", "/x.tar#0:1"):  # fmt: skip
        assert reason(read_image_bytes, root, image) == "image_outside_root", image
    linked = {"out.jpg": "outside.jpg", "out/outside.jpg": "outside.jpg", "sibling/c.jpg": "images-too/c.jpg"}
    for image, file in linked.items():
        assert read_image_bytes(root, image) == (tmp_path / file).read_bytes()
        assert reason(ImageRoot(root, "refuse").read, image) == "image_outside_root", image
    assert images_table(root, ["a.jpg", *linked], links="refuse")["reject"].to_pylist() == [
        None, *["image_outside_root"] * 3,
    ]  # fmt: skip


def test_names_are_found_in_either_unicode_normal_form(root):
    nfc, nfd = (unicodedata.normalize(form, "Käfer") for form in ("NFC", "NFD"))
    (root / nfd).mkdir()
    (root / nfd / f"{nfd}.jpg").write_bytes(encoded((9, 8)))
    (root / f"{nfc}.jpg").write_bytes(encoded((7, 6)))
    for image, size in ((f"{nfc}/{nfc}.jpg", (9, 8)), (f"{nfd}/{nfc}.jpg", (9, 8)), (f"{nfd}.jpg", (7, 6))):
        assert measure(read_image_bytes(root, image))[:2] == size
    assert reason(read_image_bytes, root, f"{nfc}/ü.jpg") == "image_missing"
    (root / f"{nfd}.jpg").write_bytes(encoded((5, 4)))  # now both forms exist, and each is itself
    assert [measure(read_image_bytes(root, f"{name}.jpg"))[:2] for name in (nfc, nfd)] == [(7, 6), (5, 4)]


def test_missing_and_malformed_references_are_rejected(root):
    os.mkfifo(root / "pipe.jpg")
    (root / "dangling.jpg").symlink_to(root / "nothing")
    (root / "loop.jpg").symlink_to(root / "loop.jpg")
    for image in ("z.jpg", "deep", "z/a.jpg", "a.jpg/b.jpg", "pipe.jpg", "dangling.jpg", "z.tar#0:10"):
        assert reason(read_image_bytes, root, image) == "image_missing", image
    for image in ("", "a\0.jpg", "x" * 5000, "\ud800.jpg", "loop.jpg"):
        assert reason(read_image_bytes, root, image) == "image_bad_reference", image


def test_a_missing_root_raises_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.*correct the recipe"):
        images_table(tmp_path / "nowhere", ["a.jpg"])


def test_tar_members_are_read_by_byte_range(root):
    data = encoded()
    with tarfile.open(root / "0.tar", "w") as tar:
        for name in ("a.jpg", "b.jpg"):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with tarfile.open(root / "0.tar") as tar:
        offset = tar.getmember("b.jpg").offset_data
    size = (root / "0.tar").stat().st_size
    assert read_image_bytes(root, f"0.tar#{offset}:{len(data)}") == data
    assert reason(read_image_bytes, root, f"0.tar#{size - 5}:6") == "image_missing"
    assert reason(read_image_bytes, root, f"0.tar#{10**17}:1") == "image_missing"
    table = images_table(root, [f"0.tar#{offset}:{len(data)}", "0.tar#0:512"])
    assert table["reject"].to_pylist() == ["image_corrupt", None]


@pytest.mark.parametrize(
    ("kind", "mode"), [("JPEG", "RGB"), ("JPEG", "CMYK"), ("PNG", "P"), ("WEBP", "RGB"), ("GIF", "L")]
)
def test_every_format_is_measured(kind, mode):
    assert measure(encoded((40, 30), kind, mode))[:2] == (40, 30)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_truncated_images_are_corrupt(kind):
    data = encoded((200, 150), kind)
    for length in (0, 1, 20, len(data) // 2, len(data) - 40):
        assert reason(measure, data[:length]) == "image_corrupt", length


def test_unknown_formats_are_corrupt():
    assert reason(measure, b"<html>404</html>") == "image_corrupt"
    assert (
        reason(measure, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n") == "image_corrupt"
    )  # Ghostscript must not run


def test_too_large_images_are_rejected_before_decoding():
    assert reason(measure, png_header(30_000, 30_000)) == "image_too_large"
    side = int(MAX_PIXELS**0.5)
    assert reason(measure, png_header(side, side)) == "image_corrupt"
    with pytest.warns(Image.DecompressionBombWarning):
        assert reason(measure, png_header(side + 1, side + 1)) == "image_too_large"


def test_decoding_refuses_to_run_if_pillow_accepts_truncated_images(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(RuntimeError, match="switch it off"):
        decode(encoded())


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 400), junk=st.binary(max_size=8), kind=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP"]))
def test_damaged_images_are_measured_or_rejected(at, junk, kind):
    data = encoded((16, 12), kind)
    try:
        width, height, _ = measure(data[:at] + junk + data[at + len(junk) :])
        assert width > 0 and height > 0
    except ImageRefError as error:
        assert error.reason in ("image_corrupt", "image_too_large")


@settings(max_examples=150, deadline=None)
@given(
    image=st.text(st.sampled_from("ab/.#:1\0 ")) | st.from_regex(r"[ab./]{0,6}\.tar#\d{1,20}:\d{1,20}", fullmatch=True)
)
def test_any_reference_is_read_or_rejected(tmp_path_factory, image):
    image_root = ImageRoot(tmp_path_factory.getbasetemp())
    try:
        image_root.read(image)
    except ImageRefError as error:
        error.detail.encode()


def test_the_images_table_has_one_sorted_row_per_image(root):
    (root / "cut.jpg").write_bytes(encoded((200, 200))[:-200])
    table = images_table(root, iter(["deep/b.png", "a.jpg", "../x.jpg", "a.jpg", "z.jpg", "cut.jpg"]))
    assert table.schema == IMAGES
    table.validate(full=True)
    rows = {row.pop("image"): row for row in table.to_pylist()}
    assert list(rows) == ["../x.jpg", "a.jpg", "cut.jpg", "deep/b.png", "z.jpg"]
    data = (root / "a.jpg").read_bytes()
    assert rows["a.jpg"]["sha256"] == hashlib.sha256(data).hexdigest()
    assert (rows["a.jpg"]["num_bytes"], rows["a.jpg"]["width"], rows["a.jpg"]["height"]) == (len(data), 40, 30)
    assert {image: row["reject"] for image, row in rows.items()} == {
        "../x.jpg": "image_outside_root", "a.jpg": None, "cut.jpg": "image_corrupt", "deep/b.png": None,
        "z.jpg": "image_missing",
    }  # fmt: skip
    assert rows["cut.jpg"]["width"] is None
    assert rows["z.jpg"]["identity"] is None


def exchange(path: Path, data: bytes) -> None:
    """Writes other bytes of the same size and restores the modification time."""
    status = path.stat()
    assert len(data) == status.st_size
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_known_images_are_not_reopened(root, monkeypatch):
    first = images_table(root, ["a.jpg", "deep/b.png"])
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.images.references.read_range", lambda path, *rest: pytest.fail(f"{path} was read"))
        assert images_table(root, ["deep/b.png", "a.jpg"], first) == first
    path = root / "a.jpg"
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))
    assert images_table(root, ["a.jpg", "deep/b.png"], first)["reject"].to_pylist() == [None, None]


def test_a_damaged_image_that_is_replaced_with_equal_size_and_time_is_measured_again(root):
    good = (root / "a.jpg").read_bytes()
    exchange(root / "a.jpg", bytes(len(good)))
    damaged = images_table(root, ["a.jpg"])
    assert damaged["reject"].to_pylist() == ["image_corrupt"]
    exchange(root / "a.jpg", good)
    assert images_table(root, ["a.jpg"], damaged)["reject"].to_pylist() == [None]


def test_a_doubted_image_is_measured_again_though_nothing_about_its_file_has_changed(root, tmp_path):
    doubts = Doubts.of(tmp_path)
    known = images_table(root, ["a.jpg", "deep/b.png"])
    wrong = known.set_column(known.schema.get_field_index("sha256"), "sha256", pa.array(["0" * 64] * 2))
    assert images_table(root, ["a.jpg"], wrong, doubted=doubts.read())["sha256"].to_pylist() == ["0" * 64]
    doubts.add(known["identity"][0].as_py())
    again = images_table(root, ["a.jpg", "deep/b.png"], wrong, doubted=doubts.read())
    assert again["sha256"].to_pylist() == [known["sha256"][0].as_py(), "0" * 64]
    assert again["identity"].to_pylist() == identities(root, ["a.jpg", "deep/b.png"], doubted=doubts.read())
    assert again["identity"][0] != known["identity"][0] and again["identity"][1] == known["identity"][1]


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EACCES])
def test_an_error_of_the_disk_is_no_verdict_about_the_image(root, monkeypatch, number):
    monkeypatch.setattr("pipelines.images.read_range._PAUSE", 0)
    real, failures = os.pread, []

    def fail(times: int):
        def pread(*arguments):
            if len(failures) < times:
                failures.append(number)
                raise OSError(number, os.strerror(number))
            return real(*arguments)

        return pread

    monkeypatch.setattr(os, "pread", fail(99))
    with pytest.raises(OSError, match=r"check the disk, then run it again: '.*a\.jpg'") as raised:
        images_table(root, ["a.jpg"])
    assert raised.value.errno == number
    failures.clear()
    monkeypatch.setattr(os, "pread", fail(2))
    if number != errno.EACCES:  # which does not pass by itself
        assert images_table(root, ["a.jpg"])["reject"].to_pylist() == [None]


def test_short_reads_are_continued_and_a_file_that_ends_early_is_named(root, monkeypatch):
    monkeypatch.setattr("pipelines.images.read_range._PAUSE", 0)
    whole, real = images_table(root, ["a.jpg"]), os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, offset: real(file, min(size, 100), offset))
    assert images_table(root, ["a.jpg"]) == whole
    monkeypatch.setattr(os, "pread", lambda file, size, offset: b"" if offset else real(file, size // 2, offset))
    with pytest.raises(OSError, match=r"only [\d,]+ of [\d,]+ bytes could be read: .*a\.jpg"):
        images_table(root, ["a.jpg"])


def test_known_images_are_reused_across_roots_and_names(root, monkeypatch):
    (root / "corrupt.jpg").write_bytes(b"no image")
    known = pa.concat_tables(
        [images_table(root, ["a.jpg", "corrupt.jpg", "z.jpg"]), images_table(root / "deep", ["b.png"])]
    )
    (root / "z.jpg").write_bytes(encoded((5, 6)))
    read: list[str] = []

    def note(path, *rest):
        read.append(Path(path).name)
        return read_range(path, *rest)

    monkeypatch.setattr("pipelines.images.references.read_range", note)
    table = images_table(root, ["a.jpg", "corrupt.jpg", "deep/b.png", "z.jpg"], known)
    assert [(row["image"], row["width"], row["height"], row["reject"]) for row in table.to_pylist()] == [
        ("a.jpg", 40, 30, None),
        ("corrupt.jpg", None, None, "image_corrupt"),
        ("deep/b.png", 7, 9, None),
        ("z.jpg", 5, 6, None),
    ]
    assert read == ["z.jpg"]


def test_threads_do_not_change_the_table(root):
    names = []
    for i in range(200):
        names.append(f"deep/{i}.png")
        (root / names[-1]).write_bytes(encoded((1 + i, 3), "PNG"))
    one, four = (images_table(root, names, threads=threads) for threads in (1, 4))
    assert one == four
    assert sorted(one["width"].to_pylist()) == list(range(1, 201))


def test_identities_match_the_table_and_change_with_the_file(root):
    names = ["a.jpg", "deep/b.png", "z.jpg"]
    before = identities(root, names)
    assert before == images_table(root, names)["identity"].to_pylist()
    assert before[2] is None
    (root / "a.jpg").write_bytes(encoded((41, 30)))
    after = identities(root, names)
    assert after[0] != before[0]
    assert after[1:] == before[1:]


def test_no_images_give_an_empty_table(root):
    assert images_table(root, []).schema == IMAGES


@pytest.mark.realdata
def test_real_images_are_usable(realdata):
    folder = realdata / "corpus" / "llava_instruct" / "images"
    table = images_table(folder, [path.name for path in folder.iterdir()])
    assert table.num_rows == 50
    assert table["reject"].null_count == 50
