"""What can be said and asked about a scene: captions, phrases, statements, questions with their answers.

Questions and answers are drawn so that the wording of a question says nothing of its answer.
"""

import dataclasses
import itertools
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


@dataclasses.dataclass(frozen=True)
class Statement:
    """Where one thing stands to another; `holds`: whether it is true."""

    one: Thing
    relation: str
    other: Thing
    holds: bool


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
    """At most `most` questions, "yes" or "no" by a fair coin each."""
    return [ask_existence(kind, scene) for kind in kinds_to_ask(scene, rng, most)]


def kinds_to_ask(scene: Scene, rng: random.Random, most: int) -> list[str]:
    """At most `most` kinds, there or not by a fair coin each, so that no answer follows from those before it.

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
    return kinds


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


OPPOSITES = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def statements(scene: Scene, rng: random.Random) -> list[Statement]:
    """One for every two things, in a random order, about their columns or their rows: true or false by a fair coin."""
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


def region_phrase(thing: Thing, cell: int, rng: random.Random) -> str:
    """What people write into a box that they draw: as much or as little as comes to mind."""
    return rng.choice(
        (
            f"a {thing.kind}",
            f"the {thing.shape} is {thing.color}",
            f"{thing.size} {thing.shape} at the {POSITIONS[cell]}",
        )
    )


def about_the_cover(scene: Scene, rng: random.Random) -> list[Question]:
    """What one may ask of a scene as of a book's cover, its word being the title: nothing where there is none."""
    if scene.word is None:
        return []
    named = scene.word if rng.random() < 0.5 else rng.choice([word for word in WORDS if word != scene.word])
    return [
        Question("What is the title of this book?", scene.word, WORDS),
        Question("Where does the title stand?", POSITIONS[scene.cells.index(scene.word)], POSITIONS),
        Question(f"Is the title {named}?", "yes" if named == scene.word else "no", ("yes", "no")),
    ]


def ask_color(thing: Thing) -> Question:
    return Question(f"What color is the {thing.shape}?", thing.color, tuple(COLORS))


def ask_size(thing: Thing) -> Question:
    return Question(f"Is the {thing.kind} small or large?", thing.size, ("small", "large"))


def _color(scene: Scene, rng: random.Random) -> list[Question]:
    return [ask_color(thing) for thing in of_their_own_shape(scene).values()]


def of_their_own_shape(scene: Scene) -> dict[int, Thing]:
    """Cell → thing, for those that "the circle" names alone."""
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


def arithmetic(rng: random.Random) -> tuple[str, str]:
    """A sum and its result, in words that need no picture."""
    a, b = rng.randint(0, 9), rng.randint(0, 9)
    return f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}."


def geometry(rng: random.Random) -> tuple[str, str]:
    """What is always true of a shape."""
    shape, corners = rng.choice((("circle", "no"), ("square", "four"), ("triangle", "three"), ("cross", "twelve")))
    return f"How many corners has a {shape}?", f"A {shape} has {corners} corners."


def counting(most: int) -> tuple[str, str]:
    """A long answer: all numbers up to `most`."""
    return f"Count to {most}.", ", ".join(str(number) for number in range(1, most + 1)) + "."
