"""Which documents are held out, and what training text is too near to them.

Invariant: no line of the training text shares a run of `RUN` + `_STEP` - 1 letters with a
held-out line, whatever the case, spaces, punctuation and Unicode normalisation; nor is it one of
them.
"""

from __future__ import annotations

import hashlib
import heapq
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

import regex

from trimix_lm_eval.training.cpt.cleaning import DOCUMENT, gathered
from trimix_lm_eval.training.cpt.lines import Line
from trimix_lm_eval.training.cpt.texts import source_of
from trimix_lm_eval.utils.errors import TrimixError

#: More are not held out, whatever the share: they are measured again and again.
MOST = 1000
#: Letters and digits.
RUN = 40
_STEP = 8

_REST = regex.compile(r"[^\p{L}\p{M}\p{N}]+")


class Drawn:
    """The documents of a stream that a seed chooses: the same whatever their order."""

    def __init__(self, seed: int) -> None:
        self._seed, self._count = seed, 0
        self._kept: list[tuple[int, int, str]] = []  # the lowest ranks, the highest of them first

    def add(self, document: str) -> None:
        """Take note of a document."""
        digest = hashlib.blake2b(f"{self._seed}\0{document}".encode(), digest_size=8).digest()
        entry = (-int.from_bytes(digest, "big"), self._count, document)
        self._count += 1
        if len(self._kept) < MOST:
            heapq.heappush(self._kept, entry)
        else:
            heapq.heappushpop(self._kept, entry)

    def chosen(self, share: float, least: int = 1) -> dict[int, str]:
        """The documents that are held out, by their place in the stream.

        At least so many, whatever the share; but never more than a quarter of all.

        Raises:
            TrimixError: There are too few documents to hold any out.
        """
        wanted = min(max(round(share * self._count), least), self._count // 4)
        if wanted < 1:
            raise TrimixError(
                f"The text has {self._count} document{'' if self._count == 1 else 's'}: too few to "
                "hold any out.",
                f"give more text (at least {4 * DOCUMENT:,} characters), or name a file of other "
                "text in the config of `trimix cpt`: held_out: some.txt",
            )
        lowest = sorted(self._kept, reverse=True)[:wanted]
        return {place: text for _, place, text in sorted(lowest, key=lambda entry: entry[1])}


def read(path: Path, field: str) -> list[str]:
    """Read held-out documents as they are: the rows of JSONL, or pieces of a text.

    Raises:
        TrimixError: It cannot be read, has no text, or bytes that are not UTF-8.
    """
    found = [one.text for one in gathered(str(path), _sound(path, field)) if one.text.strip()]
    if not found:
        raise TrimixError(f"{path} has no text in it.", "give another file")
    return found


def _sound(path: Path, field: str) -> Iterator[tuple[Line, str]]:
    """The lines of a file, all of which are text."""
    for line in source_of(path, field, "held-out text").lines():
        fault = line.fault
        try:
            text = line.data.decode()
        except UnicodeDecodeError:
            fault, text = "bytes that are not UTF-8", ""
        if fault:
            raise TrimixError(
                f"{path}, line {line.number}: {fault}.",
                "held-out text is measured as it is: repair the line, or leave it out",
            )
        yield line, text


class Decontaminator:
    """Tells which lines repeat held-out text."""

    def __init__(self, documents: Iterable[str]) -> None:
        self._runs: set[int] = set()
        self._lines: set[str] = set()
        self.add(documents)

    def add(self, documents: Iterable[str]) -> None:
        """Hold these out, too."""
        for document in documents:
            for line in document.split("\n"):
                letters = _letters(line)
                self._lines.add(letters)
                self._runs.update(hash(letters[i : i + RUN]) for i in range(len(letters) - RUN + 1))

    def hits(self, line: str) -> bool:
        """Whether a line is one of theirs, or has a long run of letters from one."""
        letters = _letters(line)
        if not letters:
            return False
        if letters in self._lines:
            return True
        starts = range(0, len(letters) - RUN + 1, _STEP)
        return any(hash(letters[i : i + RUN]) in self._runs for i in starts)


def _letters(line: str) -> str:
    """What counts when lines are compared."""
    return unicodedata.normalize("NFC", _REST.sub("", line).casefold())
