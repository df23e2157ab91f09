"""Images in Parquet and Arrow files: cells are read one at a time, and faulty ones are rejected with a reason."""

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
from support.images import read_image_bytes

from pipelines.core import table_files
from pipelines.core.errors import ImageRefError
from pipelines.images import cells
from pipelines.images.references import ImageRoot
from pipelines.images.table import identities, images_table

ROWS = 50
HF = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def drawn(index, size=(6, 4)):
    buffer = io.BytesIO()
    Image.new("RGB", size, (index, 2 * index, 200)).save(buffer, "PNG")
    return buffer.getvalue()


ENCODED = [drawn(index) for index in range(ROWS)]


def columns():
    structs = [{"bytes": data, "path": f"{index}.png"} for index, data in enumerate(ENCODED)]
    structs[3] = None
    structs[4] = {"bytes": None, "path": "linked.png"}
    structs[5] = {"bytes": None, "path": None}
    structs[6] = {"bytes": None, "path": "../outside.png"}
    lists = [[structs[0], structs[index]] if index % 2 else [] for index in range(ROWS)]
    return pa.table(
        {
            "image": pa.array(structs, HF),
            "plain": pa.array(ENCODED, pa.binary()),
            "many": pa.array(lists, pa.list_(HF)),
            "raw": pa.array([[data] for data in ENCODED], pa.list_(pa.large_binary())),
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
    (root / "linked.png").write_bytes(drawn(200))
    (tmp_path / "outside.png").write_bytes(drawn(201))
    write(root / request.param, columns())
    return root, request.param


def reason(call, *arguments):
    with pytest.raises(ImageRefError) as caught:
        call(*arguments)
    return caught.value.reason


def test_cells_return_the_written_bytes(world):
    root, file = world
    image_root = ImageRoot(root)
    for row in (0, 7, 8, 49):
        assert image_root.read(f"{file}#image:{row}") == ENCODED[row]
        assert image_root.read(f"{file}#plain:{row}") == ENCODED[row]
        assert image_root.read(f"{file}#raw:{row}[0]") == ENCODED[row]
    assert image_root.read(f"{file}#many:9[1]") == ENCODED[9]


def test_a_path_instead_of_bytes_refers_to_a_file_below_the_root(world):
    root, file = world
    assert read_image_bytes(root, f"{file}#image:4") == (root / "linked.png").read_bytes()
    before = ImageRoot(root).locate(f"{file}#image:4").identity
    os.utime(root / "linked.png", ns=(1, 1))
    assert ImageRoot(root).locate(f"{file}#image:4").identity != before
    assert reason(read_image_bytes, root, f"{file}#image:6") == "image_outside_root"
    (root / "linked.png").unlink()
    assert reason(read_image_bytes, root, f"{file}#image:4") == "image_missing"


def test_missing_cells_are_rejected(world):
    root, file = world
    for cell in ("image:50", "image:99999999999999999", "image:3", "image:5", "many:0[0]", "many:9[2]"):
        assert reason(read_image_bytes, root, f"{file}#{cell}") == "image_missing", cell
    for cell in ("other:0", "text:0", "image:0[0]", "many:1", "image.bytes:0"):
        assert reason(read_image_bytes, root, f"{file}#{cell}") == "image_bad_reference", cell
    for image in (f"{file}#image:-1", f"{file}#image:", f"{file}#image", "deep/b.parquet#image:0"):
        assert reason(read_image_bytes, root, image) == "image_missing", image
    assert reason(read_image_bytes, root, f"../root/{file}#image:0") == "image_outside_root"


def test_a_table_linked_from_outside_the_root_is_followed_unless_links_are_refused(world, tmp_path):
    root, file = world
    before = read_image_bytes(root, f"{file}#image:0")
    name = file.rpartition("/")[2]
    (root / file).rename(tmp_path / name)
    (root / file).symlink_to(tmp_path / name)
    assert read_image_bytes(root, f"{file}#image:0") == before
    assert reason(ImageRoot(root, "refuse").read, f"{file}#image:0") == "image_outside_root"


def test_invalid_and_truncated_tables_are_corrupt(tmp_path):
    for name in ("a.parquet", "a.arrow"):
        for content in (b"", b"PAR1", b"ARROW1", b"no table at all" * 100):
            (tmp_path / name).write_bytes(content)
            assert reason(read_image_bytes, tmp_path, f"{name}#x:0") == "image_corrupt"
    write(tmp_path / "b.parquet", columns())
    complete = (tmp_path / "b.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(complete[: len(complete) // 2])
    assert reason(read_image_bytes, tmp_path, "b.parquet#image:0") == "image_corrupt"


def test_the_images_table_measures_cells_and_reuses_them(world):
    root, file = world
    names = [f"{file}#image:{row}" for row in range(ROWS)] + ["linked.png", f"{file}#many:9[1]"]
    table = images_table(root, names, threads=3)
    assert table["image"].to_pylist() == sorted(names)
    rejects = {row["image"]: row["reject"] for row in table.to_pylist() if row["reject"]}
    assert rejects == {
        f"{file}#image:3": "image_missing",
        f"{file}#image:5": "image_missing",
        f"{file}#image:6": "image_outside_root",
    }
    assert set(table["width"].drop_null().to_pylist()) == {6}
    known = identities(root, names)
    assert known[9] != known[10] and known[9].startswith(f"{root}/{file}|") and known[9].endswith("|image:9")
    assert known[4].endswith(f"|{known[ROWS]}")  # the linked file
    # A second pass opens no file, and a changed file is measured again.
    assert images_table(root, names, table) == table
    write(root / file, columns().set_column(1, "plain", pa.array(ENCODED[::-1], pa.binary())))
    os.utime(root / file, ns=(1, 1))
    assert identities(root, names)[9] != known[9]


def test_threads_share_row_groups(tmp_path, monkeypatch):
    """With any cache size, every cell is correct, and in reading order each row group is read only once."""
    monkeypatch.setattr(cells, "CACHE_BYTES", 2000)
    write(tmp_path / "a.parquet", columns())
    image_root = ImageRoot(tmp_path)
    names = [f"a.parquet#plain:{row}" for row in range(ROWS)]
    shuffled = np.random.default_rng(0).permutation(ROWS * 4) % ROWS
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda row: image_root.read(names[row]), shuffled.tolist()))
    assert found == [ENCODED[row] for row in shuffled]
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
def test_damaged_files_are_read_or_rejected(tmp_path_factory, name, data):
    root = tmp_path_factory.mktemp("damaged")
    write(root / name, columns().slice(0, 12))
    content = (root / name).read_bytes()
    (root / name).write_bytes(damaged(data, content))
    image_root = ImageRoot(root)
    for cell in ("image:0", "image:9", "plain:2", "many:9[1]", "raw:3[0]"):
        try:
            image_root.read(f"{name}#{cell}")
        except ImageRefError as error:
            assert error.detail
