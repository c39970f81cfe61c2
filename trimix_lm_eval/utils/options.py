"""An option, declared once: name, type, default, help and check, as one field of a dataclass.

    @dataclass(frozen=True)
    class Settings:
        max_length: int | None = whole_option(None, "Context length in tokens.", least=2)

Whatever else speaks of the option (the command line, YAML, messages, the tables under docs/) asks
`options_of` the class.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from trimix_lm_eval.utils.validation import as_text, bounds, number, one_of, truth, whole

#: Takes the name and the value that the user wrote; returns the value, typed, or raises.
Check: TypeAlias = Callable[[str, Any], Any]

#: In place of a default, of an option that has to be given.
REQUIRED: Any = dataclasses.MISSING


class Option(NamedTuple):
    """What there is to say of an option.

    Attributes:
        name: What users write.
        type: What it may be, in words.
        default: Its value where nobody gives one.
        help: What it does, in sentences.
        check: Types a given value, or raises `TrimixError`.
    """

    name: str
    type: str
    default: Any
    help: str
    check: Check = as_text


def option(default: Any, type: str, help: str, check: Check = as_text) -> Any:
    """A dataclass field that is an option, named as the field; the rest is as in `Option`.

    ``default`` is `REQUIRED` where somebody has to give a value.
    """
    return dataclasses.field(default=default, metadata={"type": type, "help": help, "check": check})


def whole_option(default: Any, help: str, least: int | None = None, most: int | None = None) -> Any:
    """An option that is a whole number within bounds."""
    check = partial(whole, least=least, most=most)
    return option(default, f"whole number{bounds(least, most)}", help, check)


def number_option(default: Any, help: str, least: float, most: float) -> Any:
    """An option that is a number within bounds."""
    check = partial(number, least=least, most=most)
    return option(default, f"number{bounds(least, most)}", help, check)


def word_option(default: Any, help: str, accepted: Sequence[str]) -> Any:
    """An option that is one of some words."""
    words = ", ".join(f"`{one}`" for one in accepted)
    return option(default, words, help, partial(one_of, accepted=accepted))


def truth_option(default: Any, help: str) -> Any:
    """An option that is true or false."""
    return option(default, "true or false", help, truth)


def options_of(declaring: Any) -> tuple[Option, ...]:
    """The options that a dataclass declares, in order; its other fields are left out."""
    return tuple(
        Option(name=field.name, default=field.default, **field.metadata)
        for field in dataclasses.fields(declaring)
        if "help" in field.metadata
    )


def checked(options: Iterable[Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of those options that are given, each typed; other names are passed over.

    Raises:
        TrimixError: A value is not one that its option takes.
    """
    return {one.name: one.check(one.name, given[one.name]) for one in options if one.name in given}
