"""How well perceptual hashes tell copies of an image from other images, and what it costs to look for copies.

    python -m benchmarks.data.decontamination DIRECTORY

DIRECTORY holds real images, as files or in tars.
"""

import io
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image, ImageOps

from benchmarks import toy
from benchmarks.measure import parser, show, working
from pipelines.decontamination.ngrams import Ngrams
from pipelines.images.decode import decode, to_rgb
from pipelines.images.perceptual_hash import near_pairs, perceptual_hash

DRAWINGS = "ScienceQA"  # the folder of charts, maps and tables
LIMITS = range(0, 13, 2)  # 32 of 64 bits are set, so two hashes differ in an even number of bits
DEFAULT = 8  # bits
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

Pixels = Image.Image
Hash = int | None
Row = dict[str, str]


def jpeg(quality: int) -> Callable[[Pixels], Pixels]:
    return lambda image: saved(image, "JPEG", quality=quality)


def saved(image: Pixels, kind: str, **options: int) -> Pixels:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return to_rgb(decode(buffer.getvalue()))


def longest(image: Pixels, side: int) -> Pixels:
    scale = side / max(image.size)
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))


def cropped(image: Pixels, share: float) -> Pixels:
    dx, dy = round(image.width * share), round(image.height * share)
    return image.crop((dx, dy, image.width - dx, image.height - dy))


COPIES: dict[str, Callable[[Pixels], Pixels]] = {
    **{f"JPEG, quality {quality}": jpeg(quality) for quality in (95, 75, 50, 30)},
    "WebP, quality 75": lambda p: saved(p, "WEBP", quality=75),
    "PNG, 256 colours": lambda p: saved(p.quantize(256), "PNG"),
    "longest side 336": lambda p: jpeg(90)(longest(p, 336)),
    "longest side 224": lambda p: jpeg(90)(longest(p, 224)),
    "224 by 224": lambda p: jpeg(90)(p.resize((224, 224))),
    "grey": lambda p: jpeg(90)(p.convert("L")),
    "CMYK": lambda p: jpeg(90)(p.convert("CMYK")),
    "a fifth brighter": lambda p: jpeg(90)(p.point(lambda v: min(255, v * 6 // 5))),
    "1 % cut off each side": lambda p: jpeg(90)(cropped(p, 0.01)),
    "2 % cut off each side": lambda p: jpeg(90)(cropped(p, 0.02)),
    "5 % cut off each side": lambda p: jpeg(90)(cropped(p, 0.05)),
    "mirrored": lambda p: jpeg(90)(ImageOps.mirror(p)),
}


def read(directory: Path) -> dict[str, bytes]:
    """The distinct images, by name."""
    found: dict[bytes, str] = {}
    for path in sorted(directory.rglob("*")):
        if path.suffix == ".tar":
            with tarfile.open(path) as tar:
                for member in tar:
                    if member.name.endswith(SUFFIXES):
                        file = tar.extractfile(member)
                        assert file is not None
                        found.setdefault(file.read(), f"{path.parts[-2]}/{member.name}")
        elif path.suffix.lower() in SUFFIXES:
            found.setdefault(path.read_bytes(), str(path.relative_to(directory)))
    return {name: data for data, name in found.items()}


def pieces(image: Pixels) -> Iterator[Pixels]:
    """Quarters, mirrored and not: they are distinct images, of which there are more pairs than of complete images."""
    w, h = image.width // 2, image.height // 2
    for x, y in ((0, 0), (w, 0), (0, h), (w, h)):
        quarter = image.crop((x, y, x + w, y + h))
        yield from (quarter, ImageOps.mirror(quarter))


def bits(a: Hash, b: Hash) -> float:
    return float("inf") if a is None or b is None else (a ^ b).bit_count()


def recall(images: dict[str, Pixels], hashes: dict[str, Hash]) -> list[Row]:
    rows = []
    for kind, copy in COPIES.items():
        found = np.array(
            [bits(value, perceptual_hash(copy(images[name]))) for name, value in hashes.items() if value is not None]
        )
        rows.append({"copy": kind, **{f"{limit} bits": f"{(found <= limit).mean():.1%}" for limit in LIMITS}})
    return rows


def false_matches(title: str, hashes: list[Hash], names: list[str] | None = None) -> Row:
    """names: of the images; None for pieces, eight in a row of one image, which are not compared with each other."""
    some = [(value, i) for i, value in enumerate(hashes) if value is not None]
    values = np.array([value for value, _ in some], np.uint64)
    i, j, distance = near_pairs(values, values, max(LIMITS))
    apart = i < j
    if names is None:
        owner = np.array([index // 8 for _, index in some])
        apart &= owner[i] != owner[j]
    else:
        for a, b, d in sorted(zip(i[apart], j[apart], distance[apart], strict=True), key=lambda pair: pair[2]):
            print(f"  {d}: {names[some[a][1]]} {names[some[b][1]]}")
    total = len(values) * (len(values) - 1) // 2
    counts = {f"{limit} bits": str(int((distance[apart] <= limit).sum())) for limit in LIMITS}
    return {"pairs": f"{title}: {len(values):,}, {total / 1e6:.2f}M pairs", **counts}


def speed(photo: Pixels, size: int) -> list[Row]:
    """size: of the training set whose hashes are compared, in images."""
    buffer = io.BytesIO()
    photo.resize((640, 480)).save(buffer, "JPEG", quality=90)
    decoded = to_rgb(decode(buffer.getvalue()))
    random = np.random.default_rng(0)
    training = random.integers(0, 2**64, size, np.uint64)
    benchmark = random.integers(0, 2**64, max(1, size // 200), np.uint64)
    words = np.array([f"word{k}" for k in range(20_000)])
    questions = pa.array([" ".join(words[random.integers(0, 20_000, 15)]) for _ in range(size // 5)])
    asked = Ngrams.of(questions.slice(0, len(benchmark)), 13)
    near, plain = (
        best(lambda: near_pairs(training, benchmark, DEFAULT), 1),
        best(lambda: compare(training, benchmark), 1),
    )
    against = f"{size:,} images against {len(benchmark):,}"
    costs = {
        "decode a JPEG of 640 × 480": (best(lambda: decode(buffer.getvalue())), None),
        "its hash": (best(lambda: perceptual_hash(decoded)), None),
        against: (near, plain),
        f"{len(questions):,} questions of 15 words against {len(benchmark):,}": (
            best(lambda: Ngrams.of(questions, 13).shared_with(asked), 1),
            None,
        ),
    }
    return [
        {"cost": what, "ms": f"{took * 1e3:.2f}", "plain numpy ÷ this": f"{other / took:.1f}" if other else ""}
        for what, (took, other) in costs.items()
    ]


def compare(training: np.ndarray, benchmark: np.ndarray) -> list[np.ndarray]:
    """The plain way: every hash against every other."""
    return [np.flatnonzero(np.bitwise_count(training ^ value) <= DEFAULT) for value in benchmark]


def best(work: Callable[[], object], times: int = 20) -> float:
    seconds = []
    for _ in range(times):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("directory", type=Path, nargs="?", metavar="DIRECTORY")
    options = options_of.parse_args()
    with working(options) as workdir:
        if options.toy:
            options.directory = toy.photos(workdir)[0].parent
        if options.directory is None:
            options_of.error("DIRECTORY is required")
        images = {name: to_rgb(decode(data)) for name, data in read(options.directory).items()}
    hashes = {name: perceptual_hash(image) for name, image in images.items()}
    folders: dict[str, list[bool]] = {}
    for name, value in hashes.items():
        folders.setdefault(name.split("/")[0] if "/" in name else ".", []).append(value is None)
    print("Images without a hash:", ", ".join(f"{name} {sum(each)} of {len(each)}" for name, each in folders.items()))
    with_hash = sum(value is not None for value in hashes.values())
    show(f"Copies found, of the {with_hash} images with a hash, by distance", recall(images, hashes))
    print("\nNear pairs of distinct images:")
    rows = [false_matches("images", list(hashes.values()), list(hashes))]
    quarters = {name: [perceptual_hash(piece) for piece in pieces(p)] for name, p in images.items()}
    photographs = [each for name, each in quarters.items() if not name.startswith(DRAWINGS)]
    for title, chosen in ((f"quarters, without {DRAWINGS}", photographs), ("all quarters", list(quarters.values()))):
        rows.append(false_matches(title, [value for each in chosen for value in each]))
    show("Distinct images taken for copies, by distance", rows)
    show("Cost", speed(next(iter(images.values())), 10_000 if options.toy else 1_000_000))


if __name__ == "__main__":
    main()
