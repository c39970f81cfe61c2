"""Progress of long steps: a bar on a terminal, a readable line now and then everywhere else.

A bar redraws itself with carriage returns, which make one line of many kilobytes in a log, a pipe
or a CI job. There a step prints one line when it ends; one that takes longer also prints lines on
its way, the first after half a minute, the next after twice as long each, ten minutes at most.

``TQDM_DISABLE=1``, which switches off the bars of tqdm, switches off these lines as well.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any

from tqdm import tqdm

#: Seconds until the first line of a step that is not done, and at most between two lines.
FIRST, LONGEST = 30.0, 600.0

_LINE = "{n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
_LINE_WITHOUT_TOTAL = "{n_fmt} [{elapsed}, {rate_fmt}{postfix}]"


def on_terminal() -> bool:
    """Whether what is written to stderr is drawn on a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()


def say(line: str) -> None:
    """Print a line about a step to stderr where no bar shows the step.

    Nothing is printed on a terminal, on all processes but the first, or under ``TQDM_DISABLE``.
    """
    first = os.environ.get("RANK", "0") == "0"
    if first and not on_terminal() and not os.environ.get("TQDM_DISABLE"):
        print(line, file=sys.stderr, flush=True)


def progress_bar(
    items: Iterable[Any] | None = None, desc: str = "", *, off: bool = False, **options: Any
) -> Any:
    """Count a step's items while they pass; without items, `update` counts.

    Args:
        items: What to iterate over.
        desc: What the step is called.
        off: Whether nothing is to be shown, for instance on all processes but the first.
        **options: Of `tqdm`: total, initial, unit, unit_scale, delay, leave.

    Returns:
        A `tqdm` on a terminal, else `ProgressLines`; both iterate, and have `update`,
        `set_postfix`, `write`, `close` and the context of a ``with`` statement.
    """
    if not on_terminal() and not off:
        return ProgressLines(items, desc, **options)
    if off:  # said only then, for a given ``disable`` would overrule TQDM_DISABLE
        options["disable"] = True
    # The mean speed: answers come in bursts, and the last ones say little of the rest.
    return tqdm(items, desc, smoothing=0, **options)


class ProgressLines:
    """What `tqdm` is on a terminal, as whole lines; the arguments are those of `tqdm`.

    The remaining time is that of the mean speed so far, which a few fast items cannot turn.
    ``leave`` is ignored, since a line cannot be taken back; below ``delay`` seconds nothing is
    printed at the end.
    """

    def __init__(
        self,
        items: Iterable[Any] | None = None,
        desc: str = "",
        total: float | None = None,
        initial: int = 0,
        unit: str = "it",
        unit_scale: bool = False,
        delay: float = 0,
        leave: bool = True,
    ) -> None:
        self.items, self.desc = items, desc
        self.total = len(items) if total is None and isinstance(items, Sized) else total
        self.n = self.initial = initial
        self.unit, self.unit_scale, self.delay = unit, unit_scale, delay
        self._postfix: str | None = None
        self._start = time.monotonic()
        self._gap = self._next = FIRST
        self._reported: int | None = None

    def __iter__(self) -> Iterator[Any]:
        """Pass the items on."""
        with self:
            for item in self.items or ():
                yield item
                self.update()

    def __enter__(self) -> ProgressLines:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def update(self, count: int = 1) -> None:
        """Count items that are done; print a line if it is time for one."""
        self.n += count
        elapsed = time.monotonic() - self._start
        if elapsed >= self._next:
            self._gap = min(2 * self._gap, LONGEST)
            self._next = elapsed + self._gap
            self._print(elapsed)

    def set_postfix(self, refresh: bool = True, **values: Any) -> None:
        """Name values that the next line shows; ``refresh`` is ignored."""
        self._postfix = ", ".join(f"{name}={value}" for name, value in values.items())

    @staticmethod
    def write(text: str) -> None:
        """Print a text of the caller's to stdout, as `tqdm.write` does."""
        print(text, flush=True)

    def close(self) -> None:
        """Print how far the step has come, unless that was said already or it was empty."""
        elapsed = time.monotonic() - self._start
        if self.n > self.initial and self.n != self._reported and elapsed >= self.delay:
            self._print(elapsed)

    def _print(self, elapsed: float) -> None:
        self._reported = self.n
        counted = tqdm.format_meter(
            self.n,
            self.total,  # type: ignore[arg-type]  # None is fine, the stubs do not know
            elapsed,
            unit=self.unit,
            unit_scale=self.unit_scale,
            bar_format=_LINE if self.total else _LINE_WITHOUT_TOTAL,
            postfix=self._postfix,
            initial=self.initial,
        )
        say(f"{self.desc}: {counted}" if self.desc else counted)
