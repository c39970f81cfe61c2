"""What a config says of where text is: paths, or data sets on the Hub."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from trimix_lm_eval.training.cpt import values
from trimix_lm_eval.utils.errors import TrimixError, unknown

_KEYS = {
    "file": ("file", "field"),
    "hub": ("hub", "config", "split", "field", "revision", "streaming"),
}


class TextPlace(NamedTuple):
    """A place of text.

    Attributes:
        where: A file, folder, pattern or address; or a data set on the Hub.
        hub: Whether it is the latter.
        config: Of the data set.
        split: Of the data set.
        field: The column that holds the text; None is the config's ``text_field``.
        revision: Branch, tag or commit of the data set.
        streaming: Whether rows are used as they arrive, and no file is kept.
    """

    where: str
    hub: bool = False
    config: str | None = None
    split: str = "train"
    field: str | None = None
    revision: str = "main"
    streaming: bool = True

    def plain(self) -> Any:
        """As in YAML."""
        kind = "hub" if self.hub else "file"
        given = {**self._asdict(), kind: self.where}
        usual = TextPlace("")._asdict()
        kept = {k: given[k] for k in _KEYS[kind] if k == kind or given[k] != usual[k]}
        return self.where if list(kept) == ["file"] else kept


def read_places(key: str, value: Any) -> tuple[TextPlace, ...]:
    """Read what YAML says of places.

    Args:
        key: Under which it stands.
        value: One place or a list of them: texts, or mappings with ``file`` or ``hub``.

    Raises:
        TrimixError: It is something else.
    """
    return tuple(_place(key, one) for one in (value if isinstance(value, list) else [value]))


def _place(key: str, value: Any) -> TextPlace:
    if isinstance(value, str) and value:
        return TextPlace(values.text(key, value))
    kinds = [kind for kind in _KEYS if isinstance(value, Mapping) and kind in value]
    if len(kinds) != 1:
        raise TrimixError(
            f"{key} has {reprlib.repr(value)} in it.",
            "write paths, or mappings such as {hub: owner/name, config: ug} or "
            "{file: rows.jsonl, field: content}",
        )
    for name in value:
        if name not in _KEYS[kinds[0]]:
            raise unknown(f"key of a place in {key}", str(name), _KEYS[kinds[0]])
    for name, one in value.items():
        if not isinstance(one, bool if name == "streaming" else str):
            hint = "write true or false" if name == "streaming" else "write it as a text"
            raise TrimixError(f"{name} of a place in {key} is {reprlib.repr(one)}.", hint)
        if name != "streaming":
            values.text(f"{name} of a place in {key}", one)
    given = {name: one for name, one in value.items() if name not in _KEYS}
    return TextPlace(value[kinds[0]], kinds[0] == "hub", **given)
