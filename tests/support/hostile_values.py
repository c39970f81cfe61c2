"""Values that nobody means and programs meet: for tests that give them to whatever takes any.

`BY_KIND` lists them, `ANY` draws one of them or of anything that hypothesis makes of such kinds;
`files` makes the paths that are no ordinary files.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

from hypothesis import strategies as st

DIGITS = "9" * 5000

BY_KIND = {
    "numbers": [
        0, -1, 2**31, 2**63, 2**64, -(2**63), 10**400, -(10**400), 10**5000, 0.5, -0.0, 1e-320,
        1e36, 1e308, -1e308, math.inf, -math.inf, math.nan,
    ],
    "numbers as text": [
        "0", "-1", "1e5", "1e308", "1e999", "nan", "inf", "-inf", "0x10", "1_0", "２", "٣", DIGITS,
        f"auto:{DIGITS}", "1:2", "1e300:1", "1:nan", ";",
    ],
    "truth values and nothing": [True, False, None, "", " ", "no", "None"],
    "texts": [
        "x", "x" * 100_000, "a\nb", "a\0b", "\0", "\ud800", "\udcff", "\x1b[31m", "ＡＵＴＯ",
        "a,b=c", "[", "{", "$(x)", "../../..",
    ],
    "paths": [
        "~nosuchuser", "~nosuchuser/x", "~", "/", ".", "..", "/dev/null", "/dev/full", "/dev/zero",
        "/nonexistent/x", "a//b", "a/b/c", "https://x/y", "x" * 300,
    ],
    "other types": [
        [], [1], [[1]], [10**400], [10**5000], ["a", None], {}, {"a": 1}, {"a": 10**5000}, (), b"x",
        1j, object(), len,
    ],
}  # fmt: skip
VALUES = [value for values in BY_KIND.values() for value in values]

_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
#: Any of `VALUES`, and scalars, lists and mappings at random.
ANY = st.sampled_from(VALUES) | st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


def files(folder: Path) -> dict[str, Path]:
    """Paths that are no ordinary files, by what they are: a pipe, a loop, a device and others.

    Args:
        folder: Where they are made; it exists.
    """
    made = {name: folder / name for name in ("pipe", "loop", "nowhere", "device", "folder")}
    os.mkfifo(made["pipe"])
    made["loop"].symlink_to(made["loop"])
    made["nowhere"].symlink_to(folder / "absent")
    made["device"].symlink_to("/dev/zero")
    made["folder"].mkdir()
    return made
