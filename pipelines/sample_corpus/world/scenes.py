"""The small world of the sample corpus: scenes on a 2×2 grid, drawn with Pillow.

It is small on purpose: training on two CPU cores must take minutes, so images are 32×32 px and the vocabulary is short.
"""

import dataclasses
import functools
import io
import random
from collections.abc import Collection

from PIL import Image, ImageDraw

SIZE = 32  # px, width and height
CELL = SIZE // 2
COLORS = {"red": (214, 40, 40), "green": (24, 150, 62), "blue": (38, 84, 214), "yellow": (238, 196, 22)}
SHAPES = ("circle", "square", "triangle", "cross")
RADIUS = {"small": 3, "large": 6}  # px
POSITIONS = ("top left", "top right", "bottom left", "bottom right")  # the four cells, in reading order
WORDS = ("GO", "UP", "HI", "BE")
MAX_SCENES = 200_000  # of over a million possible scenes, so that drawing distinct ones stays fast
_MIRRORED = (1, 0, 3, 2)  # cell → its cell in the mirror image
_INK = (40, 40, 40)
# 5×7 px letters, defined here so that the bytes do not depend on installed fonts.
_GLYPHS = {
    "B": "####.#...##...#####.#...##...#####.",
    "E": "######....#....####.#....#....#####",
    "G": ".###.#...##....#.####...##...#.###.",
    "H": "#...##...##...#######...##...##...#",
    "I": "#####..#....#....#....#....#..#####",
    "O": ".###.#...##...##...##...##...#.###.",
    "P": "####.#...##...#####.#....#....#....",
    "U": "#...##...##...##...##...##...#.###.",
}


@dataclasses.dataclass(frozen=True)
class SceneObject:
    """A coloured shape."""

    color: str
    shape: str
    size: str

    @property
    def kind(self) -> str:
        """Color and shape, which identify the thing within its scene."""
        return f"{self.color} {self.shape}"


@dataclasses.dataclass(frozen=True)
class Scene:
    """The contents of the four cells: a thing, a printed word, or None each."""

    cells: tuple[SceneObject | str | None, ...]

    @functools.cached_property
    def things(self) -> dict[int, SceneObject]:
        """Returns cell → thing, in reading order."""
        return {cell: content for cell, content in enumerate(self.cells) if isinstance(content, SceneObject)}

    @functools.cached_property
    def word(self) -> str | None:
        return next((content for content in self.cells if isinstance(content, str)), None)

    @functools.cached_property
    def kinds(self) -> frozenset[str]:
        return frozenset(thing.kind for thing in self.things.values())

    def mirrored(self) -> "Scene":
        """Returns the scene with left and right exchanged."""
        return Scene(tuple(self.cells[cell] for cell in _MIRRORED))


@dataclasses.dataclass(frozen=True)
class SceneImage:
    """A drawn scene with a COCO-style image id."""

    id: int
    scene: Scene
    jpeg: bytes
    boxes: dict[int, tuple[int, int, int, int]]  # cell of a thing → x, y, width, height in px

    @property
    def truncated(self) -> bytes:
        """The JPEG, truncated after its header and before its last pixels."""
        return self.jpeg[: len(self.jpeg) * 7 // 8]


def draw_scene(rng: random.Random) -> Scene:
    """Draws a random scene: one to four things of distinct kinds and, if a cell is free, often a word."""
    count = rng.choice((1, 1, 2, 2, 2, 3, 3, 4))
    cells: list[SceneObject | str | None] = [None] * 4
    kinds = rng.sample([(color, shape) for color in COLORS for shape in SHAPES], count)
    chosen = rng.sample(range(4), count + 1 if count < 4 else count)
    for (color, shape), cell in zip(kinds, chosen, strict=False):
        cells[cell] = SceneObject(color, shape, rng.choice(tuple(RADIUS)))
    if count < 4 and rng.random() < 0.5:
        cells[chosen[-1]] = rng.choice(WORDS)
    return Scene(tuple(cells))


def distinct_scenes(rng: random.Random, count: int, without: Collection[Scene] = ()) -> list[Scene]:
    """Draws `count` distinct scenes, none of them in `without`. Raises ValueError if both sum to over MAX_SCENES."""
    if count + len(without) > MAX_SCENES:
        raise ValueError(f"the sample corpus cannot have {count + len(without)} scenes: choose at most {MAX_SCENES}")
    taken = set(without)
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = draw_scene(rng)
        if scene not in taken:
            taken.add(scene)
            scenes.append(scene)
    return scenes


def render(identity: int, scene: Scene, rng: random.Random) -> SceneImage:
    """Draws a scene on a light background; each thing or word is shifted by up to one pixel."""
    shade = rng.randint(225, 255)
    image = Image.new("RGB", (SIZE, SIZE), (shade, shade, shade))
    canvas = ImageDraw.Draw(image)
    boxes = {}
    for cell, content in enumerate(scene.cells):
        x = CELL * (cell % 2) + CELL // 2 + rng.randint(-1, 1)
        y = CELL * (cell // 2) + CELL // 2 + rng.randint(-1, 1)
        if isinstance(content, SceneObject):
            radius = RADIUS[content.size]
            _draw_shape(canvas, content, x, y, radius)
            boxes[cell] = (x - radius, y - radius, 2 * radius + 1, 2 * radius + 1)
        elif content:
            _print_word(image, content, x - 6, y - 3)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92, subsampling=0)
    return SceneImage(identity, scene, buffer.getvalue(), boxes)


def _draw_shape(canvas: ImageDraw.ImageDraw, thing: SceneObject, x: int, y: int, radius: int) -> None:
    box = (x - radius, y - radius, x + radius, y + radius)
    fill = COLORS[thing.color]
    if thing.shape == "circle":
        canvas.ellipse(box, fill=fill)
    elif thing.shape == "square":
        canvas.rectangle(box, fill=fill)
    elif thing.shape == "triangle":
        canvas.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=fill)
    else:
        arm = radius // 3
        canvas.rectangle((x - arm, y - radius, x + arm, y + radius), fill=fill)
        canvas.rectangle((x - radius, y - arm, x + radius, y + arm), fill=fill)


def _print_word(image: Image.Image, word: str, left: int, top: int) -> None:
    """Prints 5×7 px letters with one pixel between them; (left, top) is the corner of the first letter."""
    for position, letter in enumerate(word):
        for index, dot in enumerate(_GLYPHS[letter]):
            if dot == "#":
                image.putpixel((left + 6 * position + index % 5, top + index // 5), _INK)
