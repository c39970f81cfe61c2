"""What counts as a number, a truth value, a word, a text; and what is said of all else."""

import math
from fractions import Fraction

import numpy as np
import pytest

from trimix_lm_eval.utils import validation
from trimix_lm_eval.utils.errors import TrimixError, quoted


def refused(call, *args, **bounds) -> str:
    with pytest.raises(TrimixError) as error:
        call("x", *args, **bounds)
    assert "\n  -> " in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("given", [7, "7", 7.0, np.int64(7), np.float32(7), Fraction(7)])
def test_a_whole_number_however_it_is_written(given):
    found = validation.whole("x", given, 7, 7)
    assert found == 7 and type(found) is int


@pytest.mark.parametrize(
    "given",
    [
        True,
        None,
        "",
        "7.0",
        "1_0",
        " 7",
        "²",
        "٣",
        7.5,
        math.nan,
        math.inf,
        [7],
        b"7",
        "9" * 9999,
        [10**5000],
    ],
)
def test_no_whole_number(given):
    told = refused(validation.whole, given, 0)
    assert told.startswith(f"x={quoted(given)} is not a whole number.") and len(told) < 300


@pytest.mark.parametrize(
    ("bounds", "told"),
    [
        ({"least": 3}, "give a whole number >= 3"),
        ({"most": 1}, "give a whole number <= 1"),
        ({"least": 3, "most": 2**32 - 1}, "give a whole number from 3 to 4294967295"),
        ({"least": 3, "hint": ", or auto"}, "give a whole number >= 3, or auto"),
    ],
)
def test_whole_numbers_have_bounds(bounds, told):
    assert refused(validation.whole, 2, **bounds) == f"x=2 is out of range.\n  -> {told}"
    assert refused(validation.whole, "2", **bounds) == f"x='2' is out of range.\n  -> {told}"
    assert refused(validation.whole, 2.0, **bounds) == f"x=2 is out of range.\n  -> {told}"


def test_a_whole_number_may_be_negative_where_no_bound_says_otherwise():
    assert validation.whole("x", "-3") == -3
    assert validation.whole("x", 10**400) == 10**400


@pytest.mark.parametrize("given", [0.5, "0.5", "5e-1", Fraction(1, 2), np.float64(0.5)])
def test_a_number_however_it_is_written(given):
    found = validation.number("x", given, 0.5, 0.5)
    assert found == 0.5 and type(found) is float


@pytest.mark.parametrize("given", [False, None, "", "many", "nan", math.inf, [0.5], 10**400])
def test_no_number(given):
    assert refused(validation.number, given).startswith(f"x={quoted(given)} is not a number.")


@pytest.mark.parametrize(
    ("bounds", "inside", "outside", "told"),
    [
        ({"least": 0}, [0, 1e9], [-1e-9], ">= 0"),
        ({"most": 1.0}, [1, -5], [1.1], "<= 1"),
        ({"above": 0}, [1e-9], [0], "> 0"),
        ({"above": 0, "most": 1}, [1], [0, 2], "<= 1"),
        ({"above": 0, "below": 1}, [0.5], [0, 1], "between 0 and 1"),
        ({"least": 1e-6, "most": 0.5}, [1e-6, 0.5], [0, 0.6], "from 1e-06 to 0.5"),
    ],
)
def test_numbers_have_bounds(bounds, inside, outside, told):
    for value in inside:
        assert validation.number("x", value, **bounds) == value
    for value in outside:
        message = refused(validation.number, value, **bounds)
        assert message.startswith(f"x={value!r} is out of range.\n  -> give a number ")
        assert message.endswith(told)


@pytest.mark.parametrize("given", [True, "True", "true", 1, "1", 1.0])
def test_true(given):
    assert validation.truth("x", given) is True


@pytest.mark.parametrize("given", [False, "FALSE", 0, "0", 0.0])
def test_false(given):
    assert validation.truth("x", given) is False


@pytest.mark.parametrize("given", ["no", "yes", "on", "", None, 2, [True]])
def test_neither(given):
    assert refused(validation.truth, given).startswith(f"x={given!r} is neither true nor false.")


def test_words():
    assert validation.one_of("x", "b", iter("ab")) == "b"
    message = refused(validation.one_of, "floatt32", ["float32", "auto"])
    assert message == (
        "Unknown x 'floatt32'. Did you mean 'float32'?\n  -> accepted: auto, float32"
    )
    assert "Unknown x None." in refused(validation.one_of, None, "ab")


def test_texts():
    assert validation.text("x", "no") == "no"
    assert refused(validation.text, False) == "x=False is not a text.\n  -> write it in quotes"
    assert refused(validation.text, "").startswith("x= is empty.")
    assert refused(validation.text, 3, hint="name a file").endswith("-> name a file")
    assert validation.texts("x", ["a", ""]) == ("a", "")
    assert validation.texts("x", "ab") == ("ab",)
    assert validation.texts("x", None) == ()
    for wrong in ([5], 5, b"a", ["a", None]):
        assert refused(validation.texts, wrong).startswith(f"x={wrong!r} is not a list of texts.")
