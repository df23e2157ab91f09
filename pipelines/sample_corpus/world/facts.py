"""Generates texts about a scene: captions, phrases, statements, and questions with their answers.

Questions and answers are drawn so that the wording of a question does not reveal its answer.
"""

import dataclasses
import itertools
import random
from collections.abc import Callable

from pipelines.sample_corpus.world.scenes import COLORS, POSITIONS, SHAPES, WORDS, Scene, SceneObject

KINDS = tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES)


@dataclasses.dataclass(frozen=True)
class Question:
    """A question with its answer. options: all possible answers; four of them make a multiple-choice question."""

    text: str
    answer: str
    options: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Statement:
    """The position of one thing relative to another. holds: whether the statement is true."""

    one: SceneObject
    relation: str
    other: SceneObject
    holds: bool


def listed(parts: list[str]) -> str:
    """Joins the parts to "a", "a and b" or "a, b and c"."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def full_caption(scene: Scene) -> str:
    """Describes every thing with position and size, in reading order. The position comes first and so determines which
    thing is next; a model learns this much sooner than to count the things that it has already named."""
    parts = []
    for cell, content in enumerate(scene.cells):
        if isinstance(content, SceneObject):
            parts.append(f"at the {POSITIONS[cell]} a {content.size} {content.kind}")
        elif content:
            parts.append(f"at the {POSITIONS[cell]} the word {content}")
    return listed(parts)


def short_caption(scene: Scene) -> str:
    """Lists the things and the word, without positions."""
    parts = [f"a {thing.kind}" for thing in scene.things.values()]
    return listed(parts + [f"the word {scene.word}"] if scene.word else parts)


def existence(scene: Scene, rng: random.Random, most: int) -> list[Question]:
    """Returns at most `most` questions; a fair coin decides whether the answer to each is "yes" or "no"."""
    return [ask_existence(kind, scene) for kind in sample_kinds(scene, rng, most)]


def sample_kinds(scene: Scene, rng: random.Random, most: int) -> list[str]:
    """Returns at most `most` kinds. A fair coin decides whether each is present, so that the answers are independent.

    There are no more kinds than things, so that a "yes" is always possible. Half of the absent kinds share color and
    shape with present things.
    """
    present, absent = rng.sample(sorted(scene.kinds), len(scene.kinds)), [k for k in KINDS if k not in scene.kinds]
    kinds = []
    for _ in range(min(most, len(present))):
        if rng.random() < 0.5:
            kinds.append(present.pop())
        else:
            near = [kind for kind in absent if is_adversarial(kind, scene)]
            kinds.append(rng.choice(near if near and rng.random() < 0.5 else absent))
            absent.remove(kinds[-1])
    return kinds


def is_adversarial(kind: str, scene: Scene) -> bool:
    """Returns whether both the color and the shape of `kind` occur in the scene."""
    color, shape = kind.split()
    things = scene.things.values()
    return any(thing.color == color for thing in things) and any(thing.shape == shape for thing in things)


def ask_existence(kind: str, scene: Scene) -> Question:
    return Question(f"Is there a {kind} in the image?", "yes" if kind in scene.kinds else "no", ("yes", "no"))


def relations(scene: Scene, rng: random.Random) -> list[Question]:
    """Asks for every two things in different columns, in random order, whether one is left (or right) of the other."""
    questions = []
    things = list(scene.things.items())
    for index, first in enumerate(things):
        for second in things[index + 1 :]:
            if first[0] % 2 != second[0] % 2:
                (cell, one), (_, other) = rng.sample([first, second], 2)
                side = rng.choice(("left", "right"))
                answer = "yes" if (cell % 2 == 0) == (side == "left") else "no"
                questions.append(Question(f"Is the {one.kind} {side} of the {other.kind}?", answer, ("yes", "no")))
    return questions


OPPOSITES = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def statements(scene: Scene, rng: random.Random) -> list[Statement]:
    """Returns one statement for every two things, in random order, about their columns or rows. A fair coin decides
    whether it is true."""
    found = []
    for pair in itertools.combinations(scene.things.items(), 2):
        (cell, one), (other_cell, other) = rng.sample(pair, 2)
        (row, column), (other_row, other_column) = divmod(cell, 2), divmod(other_cell, 2)
        true = []
        if column != other_column:
            true.append("left of" if column < other_column else "right of")
        if row != other_row:
            true.append("above" if row < other_row else "below")
        relation, holds = rng.choice(true), rng.random() < 0.5
        found.append(Statement(one, relation if holds else OPPOSITES[relation], other, holds))
    return rng.sample(found, len(found))


def region_phrase(thing: SceneObject, cell: int, rng: random.Random) -> str:
    """Returns a description of a region, with more or less detail, as human annotators write it."""
    return rng.choice(
        (
            f"a {thing.kind}",
            f"the {thing.shape} is {thing.color}",
            f"{thing.size} {thing.shape} at the {POSITIONS[cell]}",
        )
    )


def cover_questions(scene: Scene, rng: random.Random) -> list[Question]:
    """Asks about a scene as about a book cover whose title is the printed word; returns no question without a word."""
    if scene.word is None:
        return []
    named = scene.word if rng.random() < 0.5 else rng.choice([word for word in WORDS if word != scene.word])
    return [
        Question("What is the title of this book?", scene.word, WORDS),
        Question("Where does the title stand?", POSITIONS[scene.cells.index(scene.word)], POSITIONS),
        Question(f"Is the title {named}?", "yes" if named == scene.word else "no", ("yes", "no")),
    ]


def ask_color(thing: SceneObject) -> Question:
    return Question(f"What color is the {thing.shape}?", thing.color, tuple(COLORS))


def ask_size(thing: SceneObject) -> Question:
    return Question(f"Is the {thing.kind} small or large?", thing.size, ("small", "large"))


def _color(scene: Scene, rng: random.Random) -> list[Question]:
    return [ask_color(thing) for thing in uniquely_shaped(scene).values()]


def uniquely_shaped(scene: Scene) -> dict[int, SceneObject]:
    """Returns cell → thing for the things that their shape identifies, as in "the circle"."""
    shapes = [thing.shape for thing in scene.things.values()]
    return {cell: thing for cell, thing in scene.things.items() if shapes.count(thing.shape) == 1}


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
    return [ask_size(thing) for thing in scene.things.values()]


FOUR_WAY: dict[str, Callable[[Scene, random.Random], list[Question]]] = {
    "color": _color,
    "shape": _shape,
    "where": _where,
    "what": _what,
    "count": _count,
    "word": _word,
}


def open_questions(scene: Scene, rng: random.Random) -> list[Question]:
    """Returns about nine questions in random order, each about a different fact."""
    questions = existence(scene, rng, 2)
    for ask in [*FOUR_WAY.values(), _what, _size, relations]:
        found = [question for question in ask(scene, rng) if question not in questions]
        questions += rng.sample(found, min(1, len(found)))
    return rng.sample(questions, len(questions))


def four_options(question: Question, rng: random.Random) -> tuple[list[str], int]:
    """Returns the correct answer and three others, in random order, and the index of the correct one."""
    others = rng.sample([option for option in question.options if option != question.answer], 3)
    options = rng.sample([question.answer, *others], 4)
    return options, options.index(question.answer)


def arithmetic(rng: random.Random) -> tuple[str, str]:
    """Returns a text-only question about an addition, and its answer."""
    a, b = rng.randint(0, 9), rng.randint(0, 9)
    return f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}."


def geometry(rng: random.Random) -> tuple[str, str]:
    """Returns a text-only question about the corners of a shape, and its answer."""
    shape, corners = rng.choice((("circle", "no"), ("square", "four"), ("triangle", "three"), ("cross", "twelve")))
    return f"How many corners has a {shape}?", f"A {shape} has {corners} corners."


def counting(most: int) -> tuple[str, str]:
    """Returns a text-only question with a long answer: all numbers up to `most`."""
    return f"Count to {most}.", ", ".join(str(number) for number in range(1, most + 1)) + "."
