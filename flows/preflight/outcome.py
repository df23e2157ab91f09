"""What a check before a run found: every item has a status, so that nothing unchecked passes for checked."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from flows.recipe.recipe import RecipeError
from pipelines.core import text_tables


class Status(StrEnum):
    OK = "OK"
    WARNING = "WARNING"  # usable, but probably not as intended
    NOT_CHECKED = "NOT CHECKED"
    FAILED = "FAILED"


@dataclass(frozen=True)
class Check:
    """The outcome of one check. item: what was checked, as a key of the recipe. needed: a run cannot start as long as
    this is not checked."""

    item: str
    status: Status
    reason: str = ""
    needed: bool = False


class NotChecked(ValueError):
    """A dry run found no problem, but could not check everything. exit_code: of the command."""

    exit_code = 3  # 1 is a failure, and 2 is a wrong command line


def failed(item: str, reason: object) -> Check:
    return Check(item, Status.FAILED, str(reason))


def tried(item: str, check: Callable[..., object], *arguments: object) -> Iterator[Check]:
    """Yields FAILED if the check raises ValueError, or OSError for an unreadable file, and nothing otherwise."""
    try:
        check(*arguments)
    except (ValueError, OSError) as error:  # ValueError is the base class of what the checks raise
        yield failed(item, error)


def passed(item: str, problems: Iterable[Check], note: str = "") -> list[Check]:
    """Returns the problems of an item, or one OK with a note if there are none."""
    return list(problems) or [Check(item, Status.OK, note)]


def refuse(recipe: str, checks: Iterable[Check]) -> None:
    """Raises RecipeError with all that failed."""
    _refuse(recipe, [check for check in checks if check.status is Status.FAILED])


def refuse_to_start(recipe: str, checks: Iterable[Check]) -> None:
    """Raises RecipeError with all that failed, and all that is not checked although a run needs it."""
    _refuse(recipe, [c for c in checks if c.status is Status.FAILED or (c.needed and c.status is Status.NOT_CHECKED)])


def _refuse(recipe: str, found: Iterable[Check]) -> None:
    lines = "".join(f"\n  {line}" for line in dict.fromkeys(f"{check.item}: {check.reason}" for check in found))
    if lines:
        raise RecipeError(f"recipe {recipe} cannot run; nothing was started:{lines}")


def table(checks: Iterable[Check]) -> list[str]:
    """Returns the lines of a table of all checks."""
    return [
        text_tables.printable(line)
        for line in text_tables.plain(
            [{"status": e.status, "checked": e.item, "found": " ".join(e.reason.split())} for e in checks]
        )
    ]
