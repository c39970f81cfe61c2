"""Where rows of a batch come from: running text, documents of tasks, repetitions."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

IGNORED = -100  # a label that the loss leaves out
_RUN = (6, 40)  # tokens that come again, least and most
_BETWEEN = 20  # tokens before they do, at most


class Stream(Protocol):
    """Where rows come from."""

    def row(self, length: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws a row: token ids and labels, int64 [length] each."""


def _drawn(least: int, most: int, rng: torch.Generator) -> int:
    """A whole number from `least` up to but not including `most`."""
    return int(torch.randint(least, most, (1,), generator=rng))


class Running:
    """Documents end to end, each closed by EOS; a row is a random window.

    Every other row, on average, starts with BOS: lm-eval scores whole documents after BOS and
    prompts without it, so the models must know both.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> None:
        encoded = tokenizer(documents, add_special_tokens=False, verbose=False)["input_ids"]
        flat = [token for ids in encoded for token in (*ids, tokenizer.eos_token_id)]
        self.ids = torch.tensor(flat)  # [N]
        self.bos = tokenizer.bos_token_id

    def row(self, length: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws a window; its labels are the tokens themselves."""
        start = _drawn(0, len(self.ids) - length, rng)
        row = self.ids[start : start + length].clone()
        if _drawn(0, 2, rng):
            row[0] = self.bos
        return row, row


class Documents:
    """Documents of questions and answers, several to a row; the loss looks at answers only."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, documents: list[list[str]]) -> None:
        self.eos = tokenizer.eos_token_id
        line = set(tokenizer("\n\n", verbose=False)["input_ids"])
        line |= set(tokenizer("\n", verbose=False)["input_ids"])
        self.made = []
        for parts in documents:
            ids: list[int] = []
            labels: list[int] = []
            for i, part in enumerate(tokenizer(parts, verbose=False)["input_ids"]):
                # What ends an answer belongs to it: the end of its line, with which a question
                # begins.
                ends = next((n for n, token in enumerate(part) if token not in line), len(part))
                judged = part if i % 2 else part[: ends if i else 0]
                ids += part
                labels += [*judged, *([IGNORED] * (len(part) - len(judged)))]
            self.made.append(([*ids, self.eos], [*labels, self.eos]))

    def row(self, length: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws documents until the row is full; what is left over is EOS, and not judged."""
        row: list[int] = []
        judged: list[int] = []
        while True:
            ids, labels = self.made[_drawn(0, len(self.made), rng)]
            if len(ids) > length:
                continue
            if len(row) + len(ids) > length:
                break
            row += ids
            judged += labels
        rest = length - len(row)
        return torch.tensor(row + [self.eos] * rest), torch.tensor(judged + [IGNORED] * rest)


class Repeats:
    """Runs of tokens that come again, half of them random and half of text.

    Args:
        texts: Whose runs come again.
        ids: The random ones are from the first of these up to the second.
    """

    def __init__(self, texts: list[Running], ids: tuple[int, int]) -> None:
        self.texts, self.ids = texts, ids

    def row(self, length: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws runs until the row is full; the loss looks at what comes again."""
        row: list[int] = []
        labels: list[int] = []
        while len(row) < length:
            run, between = _drawn(*_RUN, rng), _drawn(0, _BETWEEN, rng)
            if _drawn(0, 2, rng):
                first = torch.randint(*self.ids, (run,), generator=rng)
            else:
                first, _ = self.texts[_drawn(0, len(self.texts), rng)].row(run, rng)
            other = torch.randint(*self.ids, (between,), generator=rng)
            row += [*first.tolist(), *other.tolist(), *first.tolist()]
            # Where it begins anew cannot be known.
            labels += [*([IGNORED] * (run + between + 1)), *first.tolist()[1:]]
        return torch.tensor(row[:length]), torch.tensor(labels[:length])
