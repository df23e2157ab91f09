"""What can be said and asked about a scene: captions, phrases, questions with their answers.

Questions and answers are drawn so that the wording of a question says nothing of its answer.
"""

import dataclasses
import random
from collections.abc import Callable

from pipelines.sample.scenes import COLORS, POSITIONS, SHAPES, WORDS, Scene, Thing

KINDS = tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES)


@dataclasses.dataclass(frozen=True)
class Question:
    """`options`: all answers that the question could have; four of them make it multiple choice."""

    text: str
    answer: str
    options: tuple[str, ...]


def listed(parts: list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def full_caption(scene: Scene) -> str:
    """Every thing with place and size, in reading order. The place comes first: whoever writes the caption then knows
    which thing is next, which a model learns much sooner than to count those it has named."""
    parts = []
    for cell, content in enumerate(scene.cells):
        if isinstance(content, Thing):
            parts.append(f"at the {POSITIONS[cell]} a {content.size} {content.kind}")
        elif content:
            parts.append(f"at the {POSITIONS[cell]} the word {content}")
    return listed(parts)


def short_caption(scene: Scene) -> str:
    """Only what is there."""
    parts = [f"a {thing.kind}" for thing in scene.things.values()]
    return listed(parts + [f"the word {scene.word}"] if scene.word else parts)


def existence(scene: Scene, rng: random.Random, most: int) -> list[Question]:
    """At most `most` questions, "yes" or "no" by a fair coin each, so that no answer follows from those before it.

    No more than there are things, so that a "yes" never runs out. Half of the absent things share color and shape
    with present ones.
    """
    present, absent = rng.sample(sorted(scene.kinds), len(scene.kinds)), [k for k in KINDS if k not in scene.kinds]
    kinds = []
    for _ in range(min(most, len(present))):
        if rng.random() < 0.5:
            kinds.append(present.pop())
        else:
            near = [kind for kind in absent if adversarial(kind, scene)]
            kinds.append(rng.choice(near if near and rng.random() < 0.5 else absent))
            absent.remove(kinds[-1])
    return [ask_existence(kind, scene) for kind in kinds]


def adversarial(kind: str, scene: Scene) -> bool:
    """Whether both the color and the shape of `kind` are in the scene."""
    color, shape = kind.split()
    things = scene.things.values()
    return any(thing.color == color for thing in things) and any(thing.shape == shape for thing in things)


def ask_existence(kind: str, scene: Scene) -> Question:
    return Question(f"Is there a {kind} in the image?", "yes" if kind in scene.kinds else "no", ("yes", "no"))


def relations(scene: Scene, rng: random.Random) -> list[Question]:
    """For every two things in different columns, in a random order: is the one left (or right) of the other?"""
    questions = []
    things = list(scene.things.items())
    for place, first in enumerate(things):
        for second in things[place + 1 :]:
            if first[0] % 2 != second[0] % 2:
                (cell, one), (_, other) = rng.sample([first, second], 2)
                side = rng.choice(("left", "right"))
                answer = "yes" if (cell % 2 == 0) == (side == "left") else "no"
                questions.append(Question(f"Is the {one.kind} {side} of the {other.kind}?", answer, ("yes", "no")))
    return questions


def _color(scene: Scene, rng: random.Random) -> list[Question]:
    shapes = [thing.shape for thing in scene.things.values()]
    return [
        Question(f"What color is the {thing.shape}?", thing.color, tuple(COLORS))
        for thing in scene.things.values()
        if shapes.count(thing.shape) == 1
    ]


def _shape(scene: Scene, rng: random.Random) -> list[Question]:
    colors = [thing.color for thing in scene.things.values()]
    return [
        Question(f"What shape is {thing.color}?", thing.shape, SHAPES)
        for thing in scene.things.values()
        if colors.count(thing.color) == 1
    ]


def _where(scene: Scene, rng: random.Random) -> list[Question]:
    return [Question(f"Where is the {thing.kind}?", POSITIONS[cell], POSITIONS) for cell, thing in scene.things.items()]


def _what(scene: Scene, rng: random.Random) -> list[Question]:
    return [Question(f"What is at the {POSITIONS[cell]}?", thing.kind, KINDS) for cell, thing in scene.things.items()]


def _count(scene: Scene, rng: random.Random) -> list[Question]:
    return [Question("How many shapes are there?", str(len(scene.things)), ("1", "2", "3", "4"))]


def _word(scene: Scene, rng: random.Random) -> list[Question]:
    return [Question("Which word is printed?", scene.word, WORDS)] if scene.word else []


def _size(scene: Scene, rng: random.Random) -> list[Question]:
    return [
        Question(f"Is the {thing.kind} small or large?", thing.size, ("small", "large"))
        for thing in scene.things.values()
    ]


FOUR_WAY: dict[str, Callable[[Scene, random.Random], list[Question]]] = {
    "color": _color,
    "shape": _shape,
    "where": _where,
    "what": _what,
    "count": _count,
    "word": _word,
}


def open_questions(scene: Scene, rng: random.Random) -> list[Question]:
    """About nine questions, each on another fact, in random order."""
    questions = existence(scene, rng, 2)
    for ask in [*FOUR_WAY.values(), _what, _size, relations]:
        found = [question for question in ask(scene, rng) if question not in questions]
        questions += rng.sample(found, min(1, len(found)))
    return rng.sample(questions, len(questions))


def four_options(question: Question, rng: random.Random) -> tuple[list[str], int]:
    """The right answer among three others, in random order, and its index."""
    others = rng.sample([option for option in question.options if option != question.answer], 3)
    options = rng.sample([question.answer, *others], 4)
    return options, options.index(question.answer)
