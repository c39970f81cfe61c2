"""The tables of options under docs/, made from their declarations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from trimix_lm_eval.utils.options import REQUIRED, Option


def markdown_table(options: Iterable[Option], title: str = "option") -> str:
    """A table for the documentation: one row per option.

    Args:
        options: Its rows.
        title: Over the names.
    """
    rows = [(title, "type", "default", "meaning"), ("---",) * 4]
    rows += [
        (f"`{one.name}`", one.type, _shown(one.default), one.help.replace("|", "\\|"))
        for one in options
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _shown(default: Any) -> str:
    """A default as users would write it; nothing where there is none."""
    if default is REQUIRED:
        return "(required)"
    if default is None or default in ("", ()):
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"
