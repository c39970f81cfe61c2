"""What the tests in tests/fuzz share: their budget, damage to what is sound, commands watched."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from tests.support.hostile_values import VALUES
from trimix_lm_eval import cli
from trimix_lm_eval.utils import errors

#: Of the option --fuzz-cases; None is few of them, always the same.
CASES: int | None = None
#: Cases of all tests together, by their usual budgets: about.
USUAL = 1000
#: No case may take longer: of the processor, and by the clock where others use it, too.
SECONDS, BY_THE_CLOCK = 10, 60
#: What a command may end with: done, an error that is said, what argparse refuses, Ctrl-C.
CODES = (0, 1, 2, 130)

#: Turns a value or some bytes into damaged ones, see `damaged_bytes`.
Damage = Callable[[bytes], bytes]


def budget(usual: int) -> settings:
    """The settings of one test.

    Args:
        usual: Its cases where nobody asks for more; else they grow with all others.
    """
    return settings(
        max_examples=max(1, usual * (CASES or USUAL) // USUAL),
        derandomize=CASES is None,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )


# ---------------------------------------------------------------- damage


def _is_plain(value: Any) -> bool:
    """Whether JSON and YAML can hold it, and Python can show it."""
    if isinstance(value, dict):
        return all(isinstance(k, str) and _is_plain(v) for k, v in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, int):
        return value.bit_length() < 10_000
    return value is None or isinstance(value, (float, str))


def _harmless(text: str) -> str:
    """A text that is no path out of the folder of the test, but to devices."""
    found = text[:5000]
    return found if found.startswith(("/dev/", "~nosuchuser")) else re.sub(r"^[/~]+", "", found)


_TEXTS = [_harmless(value) for value in VALUES if isinstance(value, str)]
_OTHERS = [value for value in VALUES if _is_plain(value) and not isinstance(value, str)]
#: A text for a name or an argument.
names = st.sampled_from(_TEXTS) | st.text(max_size=20).map(_harmless)
_scalars = st.none() | st.booleans() | st.integers() | st.floats() | names
#: A value for a file that holds such.
values = st.sampled_from([*_TEXTS, *_OTHERS]) | st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=5,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to everything in a value, however deep, but to the value itself."""
    inside: Any = ()
    if isinstance(value, dict):
        inside = value.items()
    elif isinstance(value, list):
        inside = enumerate(value)
    for key, one in inside:
        yield (*path, key)
        yield from places(one, (*path, key))


@st.composite
def mutated(draw: Any, sound: Any, most: int = 3) -> Any:
    """A value with some changes: parts replaced, retyped, gone, twice, moved, or named otherwise.

    Args:
        draw: Of hypothesis.
        sound: The value: lists and mappings.
        most: How many changes at most.
    """
    whole = copy.deepcopy(sound)
    for _ in range(draw(st.integers(1, most))):
        ways = list(places(whole))
        if not ways:
            break
        *way, key = draw(st.sampled_from(ways))
        holder = whole
        for step in way:
            holder = holder[step]
        _change(draw, whole, ways, holder, key)
    return whole


def _change(draw: Any, whole: Any, ways: list[Any], holder: Any, key: Any) -> None:
    """Change one entry of a list or a mapping."""
    value = holder[key]
    kind = draw(st.sampled_from(("new", "new", "retype", "gone", "twice", "other", "name", "sign")))
    if kind == "gone":
        del holder[key]
    elif kind == "twice" and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(value))
    elif kind in ("twice", "name") and isinstance(holder, dict):
        holder[draw(names)] = value if kind == "twice" else holder.pop(key)
    elif kind == "other":
        found = whole
        for step in draw(st.sampled_from(ways)):
            found = found[step]
        holder[key] = copy.deepcopy(found)
    elif kind == "retype":
        holder[key] = draw(st.sampled_from(_retyped(value)))
    elif kind == "sign" and isinstance(value, (int, float)):
        half = value if abs(value) > 2**53 else value + 0.5
        holder[key] = draw(st.sampled_from((-value, value * 10**30, half, str(value))))
    else:
        holder[key] = copy.deepcopy(draw(values))  # a list that is drawn is changed next, perhaps


def _retyped(value: Any) -> list[Any]:
    shown = str(value)[:200]
    return [shown, [value], {"a": value}, [], {}, None, bool(value), [shown, shown], len(shown)]


#: What is put into a file's middle.
_PIECES = [
    *(b"", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\\ud800", b"\n", b"\r", b'"', b"'"),
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"#",
        b"&a ",
        b"*a",
        b"!",
        b"- ",
        b"? ",
        b"%",
        b"@",
        b"`",
    ),
    *(b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"null", b"true", b"0x", b"~", b"\x1b[31m"),
    *(b"[" * 2000, b'{"a":' * 2000, b"!!python/name:os.system ", b"2024-13-45", b"1:30", b"\t"),
]


@st.composite
def damaged_bytes(draw: Any) -> Damage:
    """Damage to a file: truncated, bits flipped, parts gone, doubled, zeroed or put in."""
    kind = draw(st.sampled_from(("cut", "flip", "gone", "twice", "zeros", "put", "digit", "put")))
    share, size = draw(st.floats(0, 1)), draw(st.integers(1, 80))
    piece = draw(st.sampled_from(_PIECES) | st.binary(max_size=9))
    bit = draw(st.integers(0, 7))

    def damage(data: bytes) -> bytes:
        at = min(int(share * len(data)), max(0, len(data) - 1))
        digits = [i for i in range(at, min(at + 4000, len(data))) if data[i : i + 1].isdigit()]
        before, part, after = data[:at], data[at : at + size], data[at + size :]
        return {
            "cut": before,
            "flip": before + bytes(b ^ (1 << bit) for b in part[:1]) + part[1:] + after,
            "gone": before + after,
            "twice": before + part + part + after,
            "zeros": before + bytes(len(part)) + after,
            "put": before + piece + part + after,
            "digit": _with_digit(data, digits[0], bit) if digits else before,
        }[kind]

    return damage


def _with_digit(data: bytes, at: int, digit: int) -> bytes:
    return data[:at] + str(digit).encode() + data[at + 1 :]


# ---------------------------------------------------------------- commands


class Hang(BaseException):
    """Raised in a case that takes too long."""


@contextlib.contextmanager
def no_hang() -> Iterator[None]:
    """End in `Hang` what takes longer than `SECONDS`, and forget which warnings were given."""
    timers = (
        (signal.ITIMER_PROF, signal.SIGPROF, SECONDS),
        (signal.ITIMER_REAL, signal.SIGALRM, BY_THE_CLOCK),
    )

    def ring(*_: Any) -> None:
        raise Hang("more than 10 seconds")

    errors._warned.clear()
    before = [signal.signal(number, ring) for _, number, _ in timers]
    try:
        for timer, _, seconds in timers:
            signal.setitimer(timer, seconds)
        yield
    finally:
        for timer, _, _ in timers:
            signal.setitimer(timer, 0)
        for (_, number, _), handler in zip(timers, before, strict=True):
            signal.signal(number, handler)


class Outcome(NamedTuple):
    """What a command did.

    Attributes:
        code: It ended with.
        out: Standard output.
        err: Standard error.
    """

    code: int
    out: str
    err: str


def command(argv: Sequence[str]) -> Outcome:
    """Run ``trimix`` in this process and see that it ends as it may: with words, in time.

    What any command may end in otherwise, such as an exception, is raised.
    """
    out, err = (
        io.TextIOWrapper(io.BytesIO(), "utf-8", errors=e) for e in (None, "backslashreplace")
    )
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), no_hang():
        try:
            code = cli.main(list(argv))
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        out.flush()
        err.flush()
    said = [stream.buffer.getvalue().decode() for stream in (out, err)]
    found = Outcome(code, *said)
    assert found.code in CODES, found
    assert "Traceback" not in found.err + found.out, found
    assert found.code == 0 or (found.err + found.out).strip(), "an error without a word"
    return found


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[Path]:
    """Work in a folder far enough below another that no `..` of a case leads out of it."""
    deep = folder.joinpath(*"abcdefgh")
    deep.mkdir(parents=True, exist_ok=True)
    before, home = os.getcwd(), os.environ.get("HOME")
    os.chdir(deep)
    os.environ["HOME"] = str(folder)
    try:
        yield deep
    finally:
        os.chdir(before)
        if home is None:
            del os.environ["HOME"]
        else:
            os.environ["HOME"] = home


def argv_text(text: str) -> str:
    """A text as an argument may be: no NUL, and no half character but those of broken bytes."""
    found = text.encode("utf-8", "surrogatepass").replace(b"\0", b"")
    return found.decode(sys.getfilesystemencoding(), "surrogateescape")
