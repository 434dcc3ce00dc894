"""What a value may be, in words and as a test."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """What is allowed."""

    allowed: str  # "it must be" ...
    holds: Callable[[Any], bool]


def one_of(*choices: Any) -> Rule:
    """One of the choices."""
    return Rule(f"one of {', '.join(map(str, choices))}", choices.__contains__)


def number(low: float, high: float = math.inf, *, above: bool = False) -> Rule:
    """Finite, and from `low`, or above it, to `high`."""
    words = f"in {'(' if above else '['}{low:g}, {high:g}]"
    if high == math.inf:
        words = f"above {low:g}" if above else f"{low:g} or more"

    def holds(value):
        fine = isinstance(value, int | float) and math.isfinite(value) and low <= value <= high
        return fine and not (above and value == low)

    return Rule(words, holds)


def whole(low: int, high: int | None = None) -> Rule:
    """A whole number from `low` to `high`."""
    words = f"a whole number, {low} or more" if high is None else f"a whole number in {low}..{high}"
    return Rule(words, lambda v: type(v) is int and low <= v and (high is None or v <= high))


def several(words: str, each: Rule, all_of: Callable[[Any], bool]) -> Rule:
    """A tuple, of which each part has a rule and all have one."""

    def holds(values):
        return isinstance(values, tuple | list) and all(map(each.holds, values)) and all_of(values)

    return Rule(words, holds)


def different(values: Any) -> bool:
    """Whether no value is there twice."""
    return len(set(values)) == len(values)


def any_of(_: Any) -> bool:
    """All values will do."""
    return True


def is_auto(value: Any) -> bool:
    """Whether a value says "auto"."""
    return tuple(value) == ("auto",)


def is_range(value: Any) -> bool:
    """Whether a value is a low and a high end."""
    fine = isinstance(value, tuple | list) and len(value) == 2 and all(map(ANY.holds, value))
    return fine and value[0] < value[1]


def is_named_range(value: Any) -> bool:
    """Whether a value is a name, a low and a high end."""
    fine = isinstance(value, tuple | list) and len(value) == 3 and isinstance(value[0], str)
    return fine and is_range(value[1:])


def numbers_or_auto(each: Rule) -> Rule:
    """One for all bands, or one for each, or none."""
    words = f"() or numbers, {each.allowed}, one or one for each band, or auto"
    numbers = several("", each, any_of)
    return Rule(words, lambda v: is_auto(v) or numbers.holds(v))


ANY = number(-math.inf)
