"""Documents -> token ids on disk, read back in rows of one length.

A document is closed by the end-of-text token, and opened by the beginning-of-text token where the
tokenizer has one: that is what precedes a text when it is scored. Rows are cut out of the stream
of all documents without a gap; the last one is filled up, and what fills it is no target.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

#: What transformers takes for "not a target".
IGNORED = -100
_BATCH = 256  # documents that are tokenized at once
_TYPE = np.uint32


class Packer:
    """Writes the tokens of documents to a file.

    Attributes:
        tokens: Written so far.
        text_tokens: Of them, those that stand for text.
    """

    def __init__(self, tokenizer: Any, path: Path) -> None:
        self._tokenizer = tokenizer
        begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        # Where one token is both, it stands between documents once.
        self._begin = [] if begin is None or begin == end else [begin]
        self._end = [] if end is None else [end]
        self._stream = path.open("wb")
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

    def close(self) -> None:
        """End the file."""
        self._stream.close()


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for document in documents:
        batch.append(document)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


class Rows:
    """A file of tokens, in rows of one length; the last is filled up with a token that exists."""

    def __init__(self, path: Path, length: int, filler: int) -> None:
        self._tokens = np.memmap(path, dtype=_TYPE, mode="r") if path.stat().st_size else ()
        self._length, self._filler = length, filler

    def __len__(self) -> int:
        return -(-len(self._tokens) // self._length)

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and labels of a row, ``[length]`` each."""
        ids = np.full(self._length, self._filler, dtype=np.int64)
        labels = np.full(self._length, IGNORED, dtype=np.int64)
        part = self._tokens[row * self._length : (row + 1) * self._length]
        ids[: len(part)] = labels[: len(part)] = part
        return ids, labels
