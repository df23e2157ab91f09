"""Captions as webdataset tars like those of img2dataset: `<key>.jpg`, `<key>.txt` and `<key>.json` for each sample."""

import io
import json
import random
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipelines.sample_corpus.world.facts import full_caption, short_caption
from pipelines.sample_corpus.world.scenes import SIZE, SceneImage
from pipelines.sample_corpus.world.writing import LayoutSummary

_TARS = 4
Members = list[tuple[str, bytes]]  # (extension, content)


def write_blip(directory: Path, scene_images: Sequence[SceneImage], rng: random.Random) -> LayoutSummary:
    """Writes BlipCapFilt: full captions, as a captioning model writes them."""

    def members(scene_image: SceneImage, key: str, caption: str) -> Members:
        about = {"caption": caption, "key": key, "status": "success"}
        return [("jpg", scene_image.jpeg), ("txt", caption.encode()), ("json", json.dumps(about).encode())]

    def first_broken(key: str) -> tuple[str, Members]:
        scene_image = scene_images[0]
        return "truncated JPEG", [
            ("jpg", scene_image.truncated),
            *members(scene_image, key, full_caption(scene_image.scene))[1:],
        ]

    def second_broken(key: str) -> tuple[str, Members]:
        return "empty caption", members(scene_images[0], key, "")

    return _write_tars(directory / "BLIP", scene_images, full_caption, members, [first_broken, second_broken])


def write_coyo(directory: Path, scene_images: Sequence[SceneImage], rng: random.Random) -> LayoutSummary:
    """Writes COYO: short captions in place of alt texts from the web, with the fields that img2dataset records."""

    def members(scene_image: SceneImage, key: str, caption: str) -> Members:
        about: dict[str, Any] = {
            "caption": caption,
            "url": f"https://example.org/{scene_image.id}.jpg",
            "key": key,
            "status": "success",
            "error_message": None,
            "width": SIZE,
            "height": SIZE,
            "exif": "{}",
            "original_width": SIZE,
            "original_height": SIZE,
        }
        text = json.dumps(about, indent=4).encode()
        return [("jpg", scene_image.jpeg), ("json", text), ("txt", caption.encode())]

    def first_broken(key: str) -> tuple[str, Members]:
        page = b"<html>404 Not Found</html>"
        return "not an image", [("jpg", page), *members(scene_images[0], key, short_caption(scene_images[0].scene))[1:]]

    def second_broken(key: str) -> tuple[str, Members]:
        return "no image", members(scene_images[0], key, short_caption(scene_images[0].scene))[1:]

    return _write_tars(directory / "COYO", scene_images, short_caption, members, [first_broken, second_broken])


def _write_tars(
    directory: Path,
    scene_images: Sequence[SceneImage],
    caption: Callable[..., str],
    members: Callable[[SceneImage, str, str], Members],
    broken: list[Callable[[str], tuple[str, Members]]],
) -> LayoutSummary:
    """Spreads the images over a few tars; the first tar ends with the broken samples."""
    directory.mkdir(parents=True, exist_ok=True)
    account = LayoutSummary()
    for number in range(_TARS):
        name = f"{directory.name}/{number:05d}.tar"
        samples = []
        for row, scene_image in enumerate(scene_images[number::_TARS]):
            key = f"{number:05d}{row:04d}"
            samples.append((key, members(scene_image, key, caption(scene_image.scene))))
        for make in broken if number == 0 else []:
            key = f"{number:05d}{len(samples):04d}"
            what, content = make(key)
            account.add_broken(name, len(samples), what)
            samples.append((key, content))
        account.rows[name] = len(samples)
        with tarfile.open(directory.parent / name, "w", format=tarfile.USTAR_FORMAT) as tar:
            for key, content in samples:
                for extension, data in content:
                    # The defaults of TarInfo (mode 644, owner 0, mtime 0) give the same bytes on every machine.
                    info = tarfile.TarInfo(f"{key}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return account
