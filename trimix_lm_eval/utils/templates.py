"""Fill templates: the one jinja2 environment of this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

_INLINE = "'unsafe-inline'"


def security_policy(*inside: str) -> str:
    """What a page tells the browser to enforce: nothing is loaded from, or sent to, anywhere.

    Args:
        *inside: What the page has in itself: ``style``, ``script``, and ``img`` as ``data:``.
    """
    from markupsafe import Markup

    allowed = (f"{kind}-src {'data:' if kind == 'img' else _INLINE}" for kind in inside)
    return Markup("; ".join(["default-src 'none'", *allowed]))


def render(template: Path, filters: Mapping[str, Callable[..., Any]], /, **values: Any) -> str:
    """Fill a template, whose file is HTML where its name ends in ``.html`` or ``.html.j2``.

    A value that is missing is an error. In HTML every text is escaped, since names of tasks and
    models come from files that anybody may have written; in Markdown and YAML a filter does that.
    """
    made = _environment(template.parent, tuple(filters.items())).get_template(template.name)
    # A half of a character, as names of files and command lines may hold, cannot be written.
    return made.render(**values).encode("utf-8", "replace").decode()


@cache
def _environment(folder: Path, filters: tuple[tuple[str, Callable[..., Any]], ...]) -> Any:
    """The environment of a folder's templates, each of which is compiled once."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=jinja2.select_autoescape(("html", "html.j2")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(filters)
    environment.globals["security_policy"] = security_policy
    return environment
