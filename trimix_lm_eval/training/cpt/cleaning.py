"""Lines -> documents. What is dropped is counted, with the reason, and can be read afterwards.

Invariant: every line is either part of a document, byte for byte as it was (unless NFC was asked
for), or counted under one of `REASONS`; all but empty ones and whole files are in `dropped.jsonl`.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TextIO

import regex

from trimix_lm_eval.training.cpt import scripts
from trimix_lm_eval.training.cpt.lines import BREAK, NO_BREAK, Line
from trimix_lm_eval.training.cpt.texts import Source

NEAR = "near held-out text"
#: Why a line is dropped, beside the faults that `lines` finds.
REASONS = {
    "empty": "nothing but white space",
    "broken UTF-8": "bytes that are no characters: another encoding, or damage",
    "replacement character": "U+FFFD: some program before has lost what was there",
    "control character": "other than a tab: no text, or another encoding",
    NO_BREAK: "a thousand characters without space or punctuation: no text",
    "duplicate": "the same line is there already",
    NEAR: "it repeats what the model is measured on",
}
#: Lines of a text that does not say where documents end are gathered up to so many characters.
DOCUMENT = 1000

_CONTROL = regex.compile(r"[\p{Cc}--[\t]]", regex.V1)
_PRIVATE = regex.compile(r"\p{Co}")
_RUN = 1000
_NO_BREAK = regex.compile(rf"[^{BREAK}]{{{_RUN}}}", regex.V1)
_SHOWN = 1000  # characters of a dropped line that are kept


class Document(NamedTuple):
    """Lines that belong together, of one file, each with its number or that of its row."""

    file: str
    numbers: list[int]
    lines: list[str]

    @property
    def text(self) -> str:
        """The whole."""
        return "\n".join(self.lines)


@dataclass
class Account:
    """What became of the lines of a text.

    Attributes:
        files: Name, bytes, SHA-256 or commit, and lines of each; of a file that is another's copy,
            whose.
        lines: In all.
        dropped: Lines by reason.
        dropped_bytes: Their bytes, by reason.
        kept: Lines that are trained on.
        held_out: Lines of held-out documents.
        documents: How many.
        characters: Of the documents.
        bytes: Of the documents, in UTF-8.
        letters: How often each character occurs in kept lines.
        other_script: Kept lines of which most letters are of another script than expected.
        mixed: Kept lines with letters of several scripts.
        not_nfc: Kept lines that NFC changes, or would change.
        private: Kept lines with private-use characters, as fonts with encodings of their own have.
    """

    files: list[dict[str, Any]] = field(default_factory=list)
    lines: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    dropped_bytes: Counter[str] = field(default_factory=Counter)
    kept: int = 0
    held_out: int = 0
    documents: int = 0
    characters: int = 0
    bytes: int = 0
    letters: Counter[str] = field(default_factory=Counter)
    other_script: int = 0
    mixed: int = 0
    not_nfc: int = 0
    private: int = 0

    def drop(self, reason: str, size: int) -> None:
        """Count a line that is not used."""
        self.dropped[reason] += 1
        self.dropped_bytes[reason] += size

    def add(self, text: str) -> None:
        """Count a document."""
        self.documents += 1
        self.characters += len(text)
        self.bytes += len(text.encode())

    def plain(self) -> dict[str, Any]:
        """The account as JSON can hold it."""
        histogram = scripts.histogram(self.letters)
        total = sum(histogram.values()) or 1
        return {
            "files": self.files,
            "lines": self.lines,
            "kept": self.kept,
            "held out": self.held_out,
            "dropped": {
                reason: {"lines": count, "bytes": self.dropped_bytes[reason]}
                for reason, count in self.dropped.most_common()
            },
            "documents": self.documents,
            "characters": self.characters,
            "bytes": self.bytes,
            "scripts": {
                scripts.NAMES.get(code, code): count / total for code, count in histogram.items()
            },
            "lines mostly in another script": self.other_script,
            "lines of several scripts": self.mixed,
            "lines not in NFC": self.not_nfc,
            "lines with private-use characters": self.private,
        }


def gathered(file: str, lines: Iterable[tuple[Line, str | None]]) -> Iterator[Document]:
    """Put lines together to documents: those of a row, or as many as make one.

    Args:
        file: Where they stand.
        lines: Each with its text, or None if it is dropped.
    """
    made, size = Document(file, [], []), 0
    for line, text in lines:
        if made.lines and (line.begins or (line.begins is None and size >= DOCUMENT)):
            yield made
            made, size = Document(file, [], []), 0
        if text is not None:
            made.numbers.append(line.number)
            made.lines.append(text)
            size += len(text)
    if made.lines:
        yield made


class Cleaner:
    """Reads sources, one after the other, and keeps what is text.

    Args:
        dropped: Receives a JSON object for each line that is dropped.
        language: Its script is expected; see `scripts.expected`.
        deduplicate: Whether lines that are there already are dropped.
        nfc: Whether lines are normalised.
        near: Tells whether a line repeats held-out text.
    """

    def __init__(
        self,
        dropped: TextIO,
        language: str,
        deduplicate: bool,
        nfc: bool,
        near: Callable[[str], bool] = lambda line: False,
    ) -> None:
        self.account = Account()
        self._near = near
        self._out, self._deduplicate, self._nfc = dropped, deduplicate, nfc
        self._expected = scripts.expected(language)
        self._seen: set[int] = set()  # 64 bits each: of ten million lines, two collide once in 10^5
        self._read: dict[str, str] = {}

    def documents(self, source: Source) -> Iterator[Document]:
        """Yield the documents of a source."""
        known: dict[str, Any] = {"name": source.name, "bytes": source.size, "sha256": source.sha256}
        if source.path is None:
            known = {"name": source.name, "commit": source.commit}
        elif source.sha256 in self._read and source.size:
            known["copy of"] = self._read[source.sha256]
            self.account.files.append(known)
            return
        self._read[source.sha256] = source.name
        self.account.files.append(known)
        before = self.account.lines
        known["lines"] = 0
        for document in gathered(source.name, self._read_lines(source)):
            known["lines"] = self.account.lines - before
            self.account.add(document.text)
            yield document
        known["lines"] = self.account.lines - before

    def _read_lines(self, source: Source) -> Iterator[tuple[Line, str | None]]:
        for line in source.lines():
            self.account.lines += 1
            yield line, self._kept(line, source)

    def _kept(self, line: Line, source: Source) -> str | None:
        """The text of a line, or None if it is dropped."""
        try:
            text = line.data.decode()
        except UnicodeDecodeError:
            text = line.data.decode("utf-8", "backslashreplace")
            self._drop(line.fault or "broken UTF-8", line, text, source)
            return None
        if reason := line.fault or _fault(text):
            self._drop(reason, line, text, source)
            return None
        normal = unicodedata.normalize("NFC", text)
        changed = normal != text
        if self._nfc:
            text = normal
        if self._deduplicate and self._again(text):
            self._drop("duplicate", line, text, source)
            return None
        if self._near(text):
            self._drop(NEAR, line, text, source)
            return None
        self.account.kept += 1
        self.account.not_nfc += changed
        self._look(text)
        return text

    def _again(self, text: str) -> bool:
        """Whether a line was there before; that white space around it differs is no matter."""
        digest = hashlib.blake2b(text.strip().encode(), digest_size=8).digest()
        number = int.from_bytes(digest, "big")
        if number in self._seen:
            return True
        self._seen.add(number)
        return False

    def _look(self, text: str) -> None:
        """Count what is kept, but may be wrong."""
        characters = Counter(text)
        self.account.letters.update(characters)
        found = scripts.histogram(characters)
        self.account.mixed += len(found) > 1
        if self._expected and found and next(iter(found)) not in self._expected:
            self.account.other_script += 1
        if _PRIVATE.search(text):
            self.account.private += 1

    def _drop(self, reason: str, line: Line, text: str, source: Source) -> None:
        size = line.size or len(line.data)
        self.account.drop(reason, size)
        if reason != "empty":
            write_dropped(self._out, reason, text, source.name, line.number, size)


def write_dropped(
    out: TextIO, reason: str, text: str, file: str = "", number: int = 0, size: int = 0
) -> None:
    """Write down a line that is not used; a long one is cut."""
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
    place = {"file": file, "line": number, "bytes": size} if file else {}
    json.dump({"reason": reason, **place, "text": shown}, out, ensure_ascii=False)
    out.write("\n")


def _fault(text: str) -> str:
    """Why a line is no text; empty if it is one."""
    if not text.strip():
        return "empty"
    if "\ufffd" in text:
        return "replacement character"
    if _CONTROL.search(text):
        return "control character"
    if len(text) >= _RUN and _NO_BREAK.search(text):
        return NO_BREAK
    return ""
