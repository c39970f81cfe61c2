"""An option is declared once; values, messages and tables come from the declaration."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest

from tests.support.option_table import markdown_table
from trimix_lm_eval.utils.errors import TrimixError
from trimix_lm_eval.utils.options import checked, option, options_of
from trimix_lm_eval.utils.validation import whole


@dataclasses.dataclass(frozen=True)
class Declared:
    part: int  # no option
    most: int = option(3, "whole number >= 1", "At most so many.", partial(whole, least=1))
    name: str = option("", "text", "This | that.")
    bold: bool = option(False, "true or false", "Whether.")


def test_the_declaration_is_a_dataclass_field():
    assert Declared(5) == Declared(part=5, most=3, name="", bold=False)
    assert [one.name for one in options_of(Declared)] == ["most", "name", "bold"]
    first = options_of(Declared)[0]
    assert (first.type, first.default, first.help) == ("whole number >= 1", 3, "At most so many.")


def test_what_is_given_is_typed_under_its_name():
    given = {"most": "7", "name": 12, "part": "x"}
    assert checked(options_of(Declared), given) == {"most": 7, "name": "12"}
    with pytest.raises(TrimixError, match="^most=0 is out of range"):
        checked(options_of(Declared), {"most": 0})


def test_the_table():
    assert markdown_table(options_of(Declared)) == (
        "| option | type | default | meaning |\n"
        "| --- | --- | --- | --- |\n"
        "| `most` | whole number >= 1 | `3` | At most so many. |\n"
        "| `name` | text |  | This \\| that. |\n"
        "| `bold` | true or false | `false` | Whether. |\n"
    )
