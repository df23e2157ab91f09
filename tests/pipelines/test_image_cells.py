"""Images inside Parquet and Arrow files: found, read alone, and refused by name where something is wrong."""

import io
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines import image_cells, table_files
from pipelines.images import ImageRefError, ImageRoot, identities, images_table, read_image_bytes

ROWS = 50
HF = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def drawn(number, size=(6, 4)):
    buffer = io.BytesIO()
    Image.new("RGB", size, (number, 2 * number, 200)).save(buffer, "PNG")
    return buffer.getvalue()


PICTURES = [drawn(number) for number in range(ROWS)]


def columns():
    structs = [{"bytes": data, "path": f"{number}.png"} for number, data in enumerate(PICTURES)]
    structs[3] = None
    structs[4] = {"bytes": None, "path": "beside.png"}
    structs[5] = {"bytes": None, "path": None}
    structs[6] = {"bytes": None, "path": "../outside.png"}
    lists = [[structs[0], structs[number]] if number % 2 else [] for number in range(ROWS)]
    return pa.table(
        {
            "picture": pa.array(structs, HF),
            "plain": pa.array(PICTURES, pa.binary()),
            "many": pa.array(lists, pa.list_(HF)),
            "raw": pa.array([[data] for data in PICTURES], pa.list_(pa.large_binary())),
            "text": pa.array(["a"] * ROWS),
        }
    )


def write(path, table):
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=8)
    else:
        maker = pa.ipc.new_file if "file" in path.stem else pa.ipc.new_stream
        with maker(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=8)


@pytest.fixture(params=["deep/a.parquet", "deep/stream.arrow", "deep/file.arrow"])
def world(request, tmp_path):
    root = tmp_path / "root"
    (root / "deep").mkdir(parents=True)
    (root / "beside.png").write_bytes(drawn(200))
    (tmp_path / "outside.png").write_bytes(drawn(201))
    write(root / request.param, columns())
    return root, request.param


def reason(call, *arguments):
    with pytest.raises(ImageRefError) as caught:
        call(*arguments)
    return caught.value.reason


def test_cells_are_the_bytes_that_were_written(world):
    root, file = world
    place = ImageRoot(root)
    for row in (0, 7, 8, 49):
        assert place.read(f"{file}#picture:{row}") == PICTURES[row]
        assert place.read(f"{file}#plain:{row}") == PICTURES[row]
        assert place.read(f"{file}#raw:{row}[0]") == PICTURES[row]
    assert place.read(f"{file}#many:9[1]") == PICTURES[9]


def test_a_path_in_place_of_bytes_is_a_file_below_the_root(world):
    root, file = world
    assert read_image_bytes(root, f"{file}#picture:4") == (root / "beside.png").read_bytes()
    before = ImageRoot(root).locate(f"{file}#picture:4").identity
    os.utime(root / "beside.png", ns=(1, 1))
    assert ImageRoot(root).locate(f"{file}#picture:4").identity != before
    assert reason(read_image_bytes, root, f"{file}#picture:6") == "image_outside_root"
    (root / "beside.png").unlink()
    assert reason(read_image_bytes, root, f"{file}#picture:4") == "image_missing"


def test_cells_that_are_not_there(world):
    root, file = world
    for cell in ("picture:50", "picture:99999999999999999", "picture:3", "picture:5", "many:0[0]", "many:9[2]"):
        assert reason(read_image_bytes, root, f"{file}#{cell}") == "image_missing", cell
    for cell in ("other:0", "text:0", "picture:0[0]", "many:1", "picture.bytes:0"):
        assert reason(read_image_bytes, root, f"{file}#{cell}") == "image_bad_reference", cell
    for image in (f"{file}#picture:-1", f"{file}#picture:", f"{file}#picture", "deep/b.parquet#picture:0"):
        assert reason(read_image_bytes, root, image) == "image_missing", image
    assert reason(read_image_bytes, root, f"../root/{file}#picture:0") == "image_outside_root"


def test_a_table_behind_a_link_that_leads_out(world, tmp_path):
    root, file = world
    name = file.rpartition("/")[2]
    (root / file).rename(tmp_path / name)
    (root / file).symlink_to(tmp_path / name)
    assert reason(read_image_bytes, root, f"{file}#picture:0") == "image_outside_root"


def test_files_that_are_not_what_they_are_called(tmp_path):
    for name in ("a.parquet", "a.arrow"):
        for content in (b"", b"PAR1", b"ARROW1", b"no table at all" * 100):
            (tmp_path / name).write_bytes(content)
            assert reason(read_image_bytes, tmp_path, f"{name}#x:0") == "image_corrupt"
    write(tmp_path / "b.parquet", columns())
    whole = (tmp_path / "b.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(whole[: len(whole) // 2])
    assert reason(read_image_bytes, tmp_path, "b.parquet#picture:0") == "image_corrupt"


def test_the_images_table_measures_cells_and_knows_them_again(world):
    root, file = world
    names = [f"{file}#picture:{row}" for row in range(ROWS)] + ["beside.png", f"{file}#many:9[1]"]
    table = images_table(root, names, threads=3)
    assert table["image"].to_pylist() == sorted(names)
    rejects = {row["image"]: row["reject"] for row in table.to_pylist() if row["reject"]}
    assert rejects == {
        f"{file}#picture:3": "image_missing",
        f"{file}#picture:5": "image_missing",
        f"{file}#picture:6": "image_outside_root",
    }
    assert set(table["width"].drop_null().to_pylist()) == {6}
    known = identities(root, names)
    assert known[9] != known[10] and known[9].startswith(f"{root}/{file}|") and known[9].endswith("|picture:9")
    assert known[4].endswith(f"|{known[ROWS]}")  # the file beside
    # A second pass opens nothing; a changed file is measured again.
    assert images_table(root, names, table) == table
    write(root / file, columns().set_column(1, "plain", pa.array(PICTURES[::-1], pa.binary())))
    os.utime(root / file, ns=(1, 1))
    assert identities(root, names)[9] != known[9]


def test_threads_share_row_groups(tmp_path, monkeypatch):
    """Whatever is kept, every cell is its own, and in reading order each group is read once."""
    monkeypatch.setattr(image_cells, "KEPT_BYTES", 2000)
    write(tmp_path / "a.parquet", columns())
    place = ImageRoot(tmp_path)
    names = [f"a.parquet#plain:{row}" for row in range(ROWS)]
    shuffled = np.random.default_rng(0).permutation(ROWS * 4) % ROWS
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda row: place.read(names[row]), shuffled.tolist()))
    assert found == [PICTURES[row] for row in shuffled]
    reads = []
    read = table_files._Parquet.read
    monkeypatch.setattr(table_files._Parquet, "read", lambda *args: (reads.append(args[1]), read(*args))[1])
    images_table(tmp_path, names, threads=1)
    assert reads == list(range(7))


def damaged(data, content):
    changed = bytearray(content)
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=8)):
        changed[at] = data.draw(st.integers(0, 255))
    return bytes(changed[: data.draw(st.just(len(changed)) | st.integers(0, len(changed)))])


@pytest.mark.parametrize("name", ["a.parquet", "stream.arrow", "file.arrow"])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_files(tmp_path_factory, name, data):
    root = tmp_path_factory.mktemp("damaged")
    write(root / name, columns().slice(0, 12))
    content = (root / name).read_bytes()
    (root / name).write_bytes(damaged(data, content))
    place = ImageRoot(root)
    for cell in ("picture:0", "picture:9", "plain:2", "many:9[1]", "raw:3[0]"):
        try:
            place.read(f"{name}#{cell}")
        except ImageRefError as error:
            assert error.detail
