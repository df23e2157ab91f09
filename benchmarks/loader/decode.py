"""What decoding of images costs, and how close its results are to Pillow's.

    python -m benchmarks.loader.decode REALDATA

REALDATA is the folder of real images. Every contender turns the same encoded images into pixel_values, eight at a time
as the loader does. Runs alternate, so that other load on the machine affects all alike; ratios are medians over the
rounds, each against Pillow in the same round.
"""

import io
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor

from benchmarks import toy
from benchmarks.measure import parser, show, working
from model.processing import HoneybeeImageProcessor
from model.training.data.decode import Decoder
from pipelines.images.decode import to_rgb

ROUNDS = 7
TOGETHER = 8
Contender = Callable[[list[bytes]], Tensor]


def plain(processor: HoneybeeImageProcessor, draft: bool = False) -> Contender:
    """Pillow throughout, as in most loaders; `draft`: the JPEG decoder scales down, to no less than S."""

    def run(encoded: list[bytes]) -> Tensor:
        images = []
        for data in encoded:
            image = Image.open(io.BytesIO(data))
            if draft:
                image.draft("RGB", (processor.size.width, processor.size.height))
            image.load()
            images.append(to_rgb(image))
        return processor.to_tensor(images)

    return run


def contenders(size: int) -> dict[str, Contender]:
    processor = HoneybeeImageProcessor(size={"height": size, "width": size})
    exact, fast = Decoder.like(processor, "exact"), Decoder.like(processor, "fast")
    return {
        "Pillow": plain(processor),
        "Pillow, draft": plain(processor, draft=True),
        "exact": lambda encoded: exact(encoded)[0],
        "fast": lambda encoded: fast(encoded)[0],
    }


def enlarged(data: bytes) -> bytes:
    """The photo as a JPEG 1600 pixels wide, as cameras and web sites write them."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    stream = io.BytesIO()
    image.resize((1600, 1600 * image.height // image.width), Image.Resampling.LANCZOS).save(stream, "JPEG", quality=85)
    return stream.getvalue()


def differences(size: int, pixels: Tensor, expected: Tensor) -> np.ndarray:
    """Absolute differences in steps of 1/255, before normalisation."""
    return ((pixels - expected).abs() * (torch.tensor(HoneybeeImageProcessor.image_std) * 255).view(3, 1, 1)).numpy()


def table(name: str, encoded: list[bytes], size: int, rounds: int) -> list[dict[str, str]]:
    named = contenders(size)
    chunks = [encoded[at : at + TOGETHER] for at in range(0, len(encoded), TOGETHER)]
    wall: dict[tuple[str, int], list[float]] = defaultdict(list)
    cpu: dict[str, list[float]] = defaultdict(list)
    pools = {n: ThreadPoolExecutor(n, "decode", torch.set_num_threads, (1,)) for n in (1, 2)}
    for _ in range(rounds):
        for threads, pool in pools.items():
            for contender, run in named.items():
                begin, used = time.perf_counter(), time.process_time()
                for _ in pool.map(run, chunks):
                    pass
                if threads == 1:
                    cpu[contender].append((time.process_time() - used) / len(encoded))
                wall[contender, threads].append((time.perf_counter() - begin) / len(encoded))
    for pool in pools.values():
        pool.shutdown()
    rows = []
    for contender, run in named.items():
        found = np.concatenate(
            [differences(size, run(chunk), named["Pillow"](chunk)).ravel() for chunk in chunks], dtype=np.float32
        )

        def ratio(of: Callable[[str], list[float]], contender: str = contender) -> str:
            return f"{statistics.median(a / b for a, b in zip(of('Pillow'), of(contender), strict=True)):.2f}"

        psnr = 10 * np.log10(255**2 / max(float((found**2).mean()), 1e-9))
        rows.append(
            {
                "images": name,
                "S": str(size),
                "what": contender,
                "images/s, 1 thread": f"{1 / statistics.median(wall[contender, 1]):.0f}",
                "2 threads": f"{1 / statistics.median(wall[contender, 2]):.0f}",
                "CPU ms an image": f"{statistics.median(cpu[contender]) * 1e3:.2f}",
                "CPU, Pillow ÷ this": ratio(lambda c: cpu[c]),
                "1 thread, Pillow ÷ this": ratio(lambda c: wall[c, 1]),
                "2 threads, Pillow ÷ this": ratio(lambda c: wall[c, 2]),
                "mean difference": f"{found.mean():.3f}",
                "99.9 %": f"{np.quantile(found, 0.999):.0f}",
                "most": f"{found.max():.0f}",
                "PSNR": "∞" if psnr > 120 else f"{psnr:.1f}",
            }
        )
    return rows


class Lap:
    """Each call adds the CPU time since the previous one to a step."""

    def __init__(self, spent: dict[str, float]):
        self.spent, self.at = spent, time.thread_time()

    def __call__(self, step: str) -> None:
        now = time.thread_time()
        self.spent[step] += now - self.at
        self.at = time.thread_time()


def profile(encoded: list[bytes], size: int, rounds: int) -> list[dict[str, str]]:
    """The CPU time of each step, with Pillow and with `exact`."""
    processor = HoneybeeImageProcessor(size={"height": size, "width": size})
    decoder = Decoder.like(processor)
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        spent: dict[str, float] = defaultdict(float)
        for data in encoded:
            lap = Lap(spent)
            image = Image.open(io.BytesIO(data))
            lap("Pillow: header")
            image.load()
            lap("Pillow: JPEG")
            image = to_rgb(image)
            lap("Pillow: EXIF, RGB")
            small = image.resize((size, size), Image.Resampling.BICUBIC)
            lap("Pillow: resize")
            processor.to_tensor([small])
            lap("Pillow: copy, normalise")
            simplejpeg.decode_jpeg_header(data)
            lap("exact: header")
            pixels = simplejpeg.decode_jpeg(data, colorspace="RGBX", buffer=decoder._buffer(1 << 24))
            lap("exact: JPEG")
            resized = decoder._fitted(pixels)
            lap("exact: resize")
            values = torch.empty(3, size, size)
            values.copy_(resized).sub_(decoder._mean).div_(decoder._std)
            lap("exact: copy, normalise")
        for step, seconds in spent.items():
            found[step].append(seconds / len(encoded))
    return [{"step": step, f"ms, {size} px": f"{statistics.median(s) * 1e3:.2f}"} for step, s in found.items()]


def real_images(realdata: Path) -> dict[str, list[bytes]]:
    corpus = realdata / "corpus"
    folders = ("VQAv2/images", "VSR/images", "coco/images")
    coco = [path.read_bytes() for folder in folders for path in sorted((corpus / folder).rglob("*.jpg"))]
    web = [path.read_bytes() for path in sorted((corpus / "llava_instruct/images").glob("*.jpg"))]
    return {"COCO": coco, "OwlEval": web, "1600 px": [enlarged(data) for data in coco[::6]]}


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("realdata", type=Path, nargs="?", metavar="REALDATA")
    options = options_of.parse_args()
    torch.set_num_threads(1)
    sizes, rounds = (224, 336), ROUNDS
    with working(options) as workdir:
        if options.toy:
            sizes, rounds = (64,), 1
            sets = {"noise": [path.read_bytes() for path in toy.photos(workdir)]}
        elif options.realdata is None:
            options_of.error("REALDATA is required")
        else:
            sets = real_images(options.realdata)
    first = next(iter(sets))
    for size in sizes:
        show(f"Steps of decoding, {first}, {size} px", profile(sets[first], size, rounds))
    for name, encoded in sets.items():
        for size in sizes:
            show(f"Decoding, {name}, {size} px", table(f"{name} ({len(encoded)})", encoded, size, rounds))


if __name__ == "__main__":
    main()
