"""How well perceptual hashes tell copies of a picture from other pictures, and what looking for them costs.

python benchmarks/decontamination.py DIRECTORY    (of real pictures, as files or in tars)
"""

import io
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image, ImageOps

from pipelines.decontamination.ngrams import Ngrams
from pipelines.images.decode import decode, to_rgb
from pipelines.images.perceptual_hash import near_pairs, perceptual_hash

DRAWINGS = "ScienceQA"  # the folder of charts, maps and tables
LIMITS = range(0, 13, 2)  # 32 of 64 bits are set, so that two hashes differ in an even number
IMAGES = (".jpg", ".jpeg", ".png", ".webp")

SceneImage = Image.Image
Hash = int | None


def jpeg(quality: int) -> Callable[[SceneImage], SceneImage]:
    return lambda scene_image: saved(scene_image, "JPEG", quality=quality)


def saved(scene_image: SceneImage, kind: str, **options: int) -> SceneImage:
    buffer = io.BytesIO()
    scene_image.save(buffer, kind, **options)
    return to_rgb(decode(buffer.getvalue()))


def longest(scene_image: SceneImage, side: int) -> SceneImage:
    scale = side / max(scene_image.size)
    return scene_image.resize((max(1, round(scene_image.width * scale)), max(1, round(scene_image.height * scale))))


def cropped(scene_image: SceneImage, share: float) -> SceneImage:
    dx, dy = round(scene_image.width * share), round(scene_image.height * share)
    return scene_image.crop((dx, dy, scene_image.width - dx, scene_image.height - dy))


COPIES: dict[str, Callable[[SceneImage], SceneImage]] = {
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
    """The distinct pictures, by name."""
    found: dict[bytes, str] = {}
    for path in sorted(directory.rglob("*")):
        if path.suffix == ".tar":
            with tarfile.open(path) as tar:
                for member in tar:
                    if member.name.endswith(IMAGES):
                        found.setdefault(tar.extractfile(member).read(), f"{path.parts[-2]}/{member.name}")
        elif path.suffix.lower() in IMAGES:
            found.setdefault(path.read_bytes(), str(path.relative_to(directory)))
    return {name: data for data, name in found.items()}


def pieces(scene_image: SceneImage) -> Iterator[SceneImage]:
    """Quarters, mirrored and not: pictures of their own, to have more pairs than a few hundred pictures give."""
    w, h = scene_image.width // 2, scene_image.height // 2
    for x, y in ((0, 0), (w, 0), (0, h), (w, h)):
        quarter = scene_image.crop((x, y, x + w, y + h))
        yield from (quarter, ImageOps.mirror(quarter))


def bits(a: Hash, b: Hash) -> float:
    return float("inf") if a is None or b is None else (a ^ b).bit_count()


def recall(scene_images: dict[str, SceneImage], hashes: dict[str, Hash]) -> None:
    with_hash = [name for name in scene_images if hashes[name] is not None]
    print(f"\nCopies found, of the {len(with_hash)} pictures with a hash, by distance:")
    print("|".join(["", "copy", *map(str, LIMITS), ""]))
    for kind, copy in COPIES.items():
        found = np.array([bits(hashes[name], perceptual_hash(copy(scene_images[name]))) for name in with_hash])
        print("|".join(["", kind, *(f"{(found <= limit).mean():.1%}" for limit in LIMITS), ""]))


def false_matches(title: str, hashes: list[Hash], names: list[str] | None = None) -> None:
    some = [(value, i) for i, value in enumerate(hashes) if value is not None]
    values = np.array([value for value, _ in some], np.uint64)
    i, j, distance = near_pairs(values, values, max(LIMITS))
    apart = i < j
    if names is None:  # pieces: those of one picture are no distinct pictures
        owner = np.array([index // 8 for _, index in some])
        apart &= owner[i] != owner[j]
    total = len(values) * (len(values) - 1) // 2
    counts = [int((distance[apart] <= limit).sum()) for limit in LIMITS]
    print("|".join(["", f"{title}: {len(values):,}, {total / 1e6:.2f}M pairs", *map(str, counts), ""]))
    if names is not None:
        for a, b, d in sorted(zip(i[apart], j[apart], distance[apart], strict=True), key=lambda pair: pair[2]):
            print(f"  {d}: {names[some[a][1]]} {names[some[b][1]]}")


def speed(photo: SceneImage) -> None:
    buffer = io.BytesIO()
    photo.resize((640, 480)).save(buffer, "JPEG", quality=90)
    decoded = to_rgb(decode(buffer.getvalue()))
    print(f"\nA JPEG of 640 by 480: {best(lambda: decode(buffer.getvalue())) * 1e3:.2f} ms to decode")
    print(f"its hash: {best(lambda: perceptual_hash(decoded)) * 1e3:.2f} ms")
    random = np.random.default_rng(0)
    training = random.integers(0, 2**64, 1_000_000, np.uint64)
    benchmark = random.integers(0, 2**64, 5_000, np.uint64)
    seconds = best(lambda: near_pairs(training, benchmark, 8), 1)
    print(f"1,000,000 pictures against 5,000: {seconds:.1f} s")
    vocabulary = np.array([f"word{k}" for k in range(20_000)])
    questions = pa.array([" ".join(vocabulary[random.integers(0, 20_000, 15)]) for _ in range(200_000)])
    asked = Ngrams.of(questions.slice(0, 5_000), 13)
    seconds = best(lambda: Ngrams.of(questions, 13).shared_with(asked), 1)
    print(f"200,000 distinct questions of 15 words against 5,000: {seconds:.1f} s")


def best(work: Callable[[], object], times: int = 20) -> float:
    seconds = []
    for _ in range(times):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def main(directory: Path) -> None:
    scene_images = {name: to_rgb(decode(data)) for name, data in read(directory).items()}
    hashes = {name: perceptual_hash(scene_image) for name, scene_image in scene_images.items()}
    folders: dict[str, list[bool]] = {}
    for name, value in hashes.items():
        folders.setdefault(name.split("/")[0], []).append(value is None)
    print("Pictures without a hash, of all:")
    print(", ".join(f"{folder} {sum(each)} of {len(each)}" for folder, each in folders.items()))
    recall(scene_images, hashes)
    print("\nDistinct pictures taken for copies, by distance:")
    false_matches("pictures", list(hashes.values()), list(hashes))
    quarters = {name: [perceptual_hash(piece) for piece in pieces(p)] for name, p in scene_images.items()}
    photographs = [each for name, each in quarters.items() if not name.startswith(DRAWINGS)]
    for title, chosen in ((f"quarters, {DRAWINGS} aside", photographs), ("all quarters", quarters.values())):
        false_matches(title, [value for each in chosen for value in each])
    speed(next(iter(scene_images.values())))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
