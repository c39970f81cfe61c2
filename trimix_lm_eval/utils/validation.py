"""Checks of single values: the one place that says what counts as a number, a truth value, a text.

Values come typed (YAML, Python) or as text (command lines), and either is read alike. Each check
takes the name under which the user wrote the value, and the value; it returns the value, typed, or
raises one `TrimixError` that names both and says what to write instead: the ``hint`` where one is
given. A bound that is None is none.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterable
from typing import Any

from trimix_lm_eval.utils.errors import TrimixError, quoted, unknown

_TRUTH = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def each_once(pairs: Iterable[tuple[str, Any]], says: str = "{} is given twice") -> dict[str, Any]:
    """Names and values as a mapping, in which of a name given twice only the last would count.

    Raises:
        ValueError: A name is there twice; with what ``says`` tells, the name in place of ``{}``.
    """
    given = list(pairs)
    found = dict(given)
    if len(found) < len(given):
        names = [name for name, _ in given]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(says.format(f"{twice!r:.80}"))
    return found


def whole(
    name: str, value: Any, least: int | None = None, most: int | None = None, hint: str = ""
) -> int:
    """A whole number: an int, a float without a fraction, or the digits of one; no truth value.

    The hint stands behind "give a whole number >= 3".
    """
    wanted = f"give a whole number{bounds(least, most)}{hint}"
    found = _whole(value)
    if found is None:
        raise TrimixError(f"{name}={quoted(value)} is not a whole number.", wanted)
    if (least is not None and found < least) or (most is not None and found > most):
        # lm-eval reads -1 as -1.0, which nobody wrote.
        given = found if isinstance(value, float) else value
        raise TrimixError(f"{name}={quoted(given)} is out of range.", wanted)
    return found


def number(
    name: str,
    value: Any,
    least: float | None = None,
    most: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
    hint: str = "",
) -> float:
    """A finite number, or a text that writes one; no truth value.

    The hint stands behind "give a number >= 3".
    """
    wanted = f"give a number{bounds(least, most, above, below)}{hint}"
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise TrimixError(f"{name}={quoted(value)} is not a number.", wanted)
    inside = (
        (least is None or found >= least)
        and (most is None or found <= most)
        and (above is None or found > above)
        and (below is None or found < below)
    )
    if not inside:
        raise TrimixError(f"{name}={quoted(value)} is out of range.", wanted)
    return found


def truth(name: str, value: Any) -> bool:
    """True or false, as YAML and command lines spell them, 1 or 0: ``no`` must not mean yes."""
    found = None
    with contextlib.suppress(ValueError):  # of a number of 5,000 digits
        found = _TRUTH.get(str(value).lower())
    if found is None:
        raise TrimixError(
            f"{name}={quoted(value)} is neither true nor false.", "give true or false"
        )
    return found


def one_of(name: str, value: Any, accepted: Iterable[str]) -> str:
    """One of some words; the error has the nearest guess."""
    words = tuple(accepted)
    if not isinstance(value, str) or value not in words:
        raise unknown(name, value, words)
    return value


def text(name: str, value: Any, hint: str = "") -> str:
    """A text that is not empty; YAML reads some as numbers."""
    if not isinstance(value, str):
        raise TrimixError(f"{name}={quoted(value)} is not a text.", hint or "write it in quotes")
    if not value:
        raise TrimixError(f"{name}= is empty.", hint or f"give a value, or leave {name} out")
    return value


def as_text(name: str, value: Any) -> str:
    """Any value as text: command lines make numbers of a commit or a folder named 1234567."""
    if isinstance(value, str | int | float | os.PathLike):
        with contextlib.suppress(ValueError):  # of 5,000 digits
            return str(value)
    raise TrimixError(f"{name}={quoted(value)} is not a text.", "write it in quotes")


def texts(name: str, value: Any, hint: str = "") -> tuple[str, ...]:
    """A list of texts; a text alone is a list of one, and None an empty list."""
    items = (value,) if isinstance(value, str) else () if value is None else value
    if not isinstance(items, Iterable) or isinstance(items, bytes):
        items = (items,)
    found = tuple(items)
    if not all(isinstance(item, str) for item in found):
        raise TrimixError(
            f"{name}={quoted(value)} is not a list of texts.",
            hint or "write a list such as ['a', 'b']",
        )
    return found


def _whole(value: Any) -> int | None:
    """A whole number, or None."""
    if isinstance(value, bool) or (isinstance(value, str) and not re.fullmatch("-?[0-9]+", value)):
        return None
    try:
        found = int(value)
        str(found)  # of 5,000 digits Python can write none, so no results file could have it
    except (TypeError, ValueError, OverflowError):
        return None
    return found if isinstance(value, str) or found == value else None


def bounds(
    least: float | None,
    most: float | None,
    above: float | None = None,
    below: float | None = None,
) -> str:
    """The bounds in words, with a blank in front; empty where there are none."""
    if least is not None and most is not None:
        return f" from {_shown(least)} to {_shown(most)}"
    if above is not None and below is not None:
        return f" between {_shown(above)} and {_shown(below)}"
    signs = ((">=", least), (">", above), ("<=", most), ("<", below))
    parts = [f"{sign} {_shown(bound)}" for sign, bound in signs if bound is not None]
    return f" {' and '.join(parts)}" if parts else ""


def _shown(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"
