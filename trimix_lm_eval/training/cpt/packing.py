"""Documents -> token ids on disk, read back as rows in which no document sees another.

A document is closed by the end-of-text token, and opened by the token that precedes a text when it
is scored: the beginning-of-text token, or where the tokenizer has none that of the end. What opens
a document, or the part of one that a row begins with, is no target.

    text.tokens    uint32, all documents one after another
    text.ends      uint64, where each of them ends, counted in tokens
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

#: What transformers takes for "not a target".
IGNORED = -100
_BATCH = 256  # documents that are tokenized at once
_TYPE = np.uint32
_ENDS = ".ends"


class Packer:
    """Writes the tokens of documents to a file, and where they end beside it.

    Attributes:
        tokens: Written so far.
        text_tokens: Of them, those that stand for text.
    """

    def __init__(self, tokenizer: Any, path: Path) -> None:
        self._tokenizer = tokenizer
        begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        self._begin = [end if begin is None else begin]
        self._end = [] if end is None else [end]
        self._stream = path.open("wb")
        self._ends = array("Q")
        self._ends_path = path.with_suffix(_ENDS)
        self.tokens = self.text_tokens = 0

    def add(self, documents: Iterable[str]) -> None:
        """Write documents."""
        for batch in _batches(documents):
            found = self._tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]
            for ids in found:
                begin = [] if ids[:1] == self._begin else self._begin  # the text may have its own
                row = [*begin, *ids, *self._end]
                self._stream.write(np.asarray(row, dtype=_TYPE).tobytes())
                self.text_tokens += len(ids)
                self.tokens += len(row)
                self._ends.append(self.tokens)

    def close(self) -> None:
        """End the files."""
        self._stream.close()
        self._ends_path.write_bytes(self._ends.tobytes())


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for document in documents:
        batch.append(document)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Tokens, and where documents end, of a `Packer`; none of a file that it did not write."""
    if not path.stat().st_size:
        return np.empty(0, dtype=_TYPE), np.empty(0, dtype=np.int64)
    ends = np.fromfile(path.with_suffix(_ENDS), dtype=np.uint64).astype(np.int64)
    return np.memmap(path, dtype=_TYPE, mode="r"), ends


class Rows:
    """A file of tokens in rows of one length, cut out of the stream of documents without a gap.

    Position ids begin anew with each document, by which models of attention alone tell them apart
    (see `apart`). The last row is filled up with a token that exists.
    """

    def __init__(self, path: Path, length: int, filler: int) -> None:
        self._tokens, self._ends = _read(path)
        self._length, self._filler = length, filler

    def __len__(self) -> int:
        return -(-len(self._tokens) // self._length)

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        """A row under the names of a model's arguments: ids, labels, positions, ``[1, T]`` each."""
        first = row * self._length
        part = self._tokens[first : first + self._length]
        ids = np.full(self._length, self._filler, dtype=np.int64)
        labels = np.full(self._length, IGNORED, dtype=np.int64)
        ids[: len(part)] = labels[: len(part)] = part
        inside = slice(*np.searchsorted(self._ends, [first + 1, first + self._length]))
        # What fills the last row up begins where the last document ends, as a document would.
        begins = np.concatenate([[0], self._ends[inside] - first])
        labels[begins] = IGNORED
        lengths = np.diff(begins, append=self._length)
        positions = np.arange(self._length) - np.repeat(begins, lengths)
        made = {"input_ids": ids, "labels": labels, "position_ids": positions}
        return {name: value[None] for name, value in made.items()}


class Blocks:
    """A file of tokens in blocks of documents of nearly one length, each in a row of its own.

    For models in which one document of a row would be seen by the next. A document longer than a
    row takes several. Rows are sorted by length, as many as fit into the tokens of a row of full
    length make a block, and they are filled up to the longest of them: hardly anything is padding.
    """

    def __init__(self, path: Path, length: int, filler: int) -> None:
        self._tokens, ends = _read(path)
        self._filler = filler
        begins = np.append(0, ends)[:-1]
        counts = -(-(ends - begins) // length)
        within = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
        starts = np.repeat(begins, counts) + within * length
        sizes = np.minimum(np.repeat(ends, counts) - starts, length)
        starts, sizes = starts[sizes > 1], sizes[sizes > 1]  # one token predicts nothing
        order = np.argsort(-sizes, kind="stable")
        self._starts, self._sizes = starts[order], sizes[order]
        self._firsts = [0]
        while (first := self._firsts[-1]) < len(order):
            rows = length // int(self._sizes[first])
            self._firsts.append(min(first + rows, len(order)))

    def __len__(self) -> int:
        return len(self._firsts) - 1

    def __getitem__(self, block: int) -> dict[str, np.ndarray]:
        """A block under the names of a model's arguments: ids and labels, ``[rows, T]`` each."""
        rows = slice(self._firsts[block], self._firsts[block + 1])
        starts, sizes = self._starts[rows], self._sizes[rows]
        ids = np.full((len(starts), sizes[0]), self._filler, dtype=np.int64)
        labels = np.full_like(ids, IGNORED)
        for row, (start, size) in enumerate(zip(starts, sizes, strict=True)):
            ids[row, :size] = labels[row, :size] = self._tokens[start : start + size]
        labels[:, 0] = IGNORED
        return {"input_ids": ids, "labels": labels}
