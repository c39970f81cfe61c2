"""Bits per byte of documents, as lm-eval's rolling ``bits_per_byte`` measures them.

The windows are lm-eval's own; sums are taken in fp32. Several processes share the windows.

A BOS is never scored. Tokenizers of Llama and Gemma put one before each text by themselves, and a
text may begin with one: it is then the context of the text, as it is where the tokenizer adds none.
lm-eval's ``hf`` puts a second one before it and scores the first: some nats a document.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from trimix_lm_eval.loading.codec import TextCodec
from trimix_lm_eval.loading.settings import Settings
from trimix_lm_eval.training.cpt.packing import IGNORED
from trimix_lm_eval.utils import distributed
from trimix_lm_eval.utils.distributed import DistributedEnv
from trimix_lm_eval.utils.errors import TrimixError
from trimix_lm_eval.utils.windows import Window


class Measured(NamedTuple):
    """Mean NLL per token in nats, and bits per byte of the documents in UTF-8."""

    nll: float
    bits_per_byte: float


class Windows(NamedTuple):
    """Documents, cut up for a model, the longest first; and their bytes in UTF-8."""

    windows: list[Window]
    bytes: int

    @classmethod
    def of(cls, documents: Sequence[str], tokenizer: Any, length: int) -> Windows:
        """Cut documents into windows of what a model sees at once."""
        codec = TextCodec(tokenizer, Settings({}), (), len(tokenizer))
        found = [window for document in documents for window in codec.windows(document, length)]
        found.sort(key=lambda window: -len(window[0]) - len(window[1]))
        return cls(found, sum(len(document.encode()) for document in documents))


@torch.no_grad()
def measure(
    model: Any, windows: Windows, rows: int, place: DistributedEnv | None = None
) -> Measured:
    """Measure a model, so many windows in each forward pass.

    Raises:
        TrimixError: The model's weights give no numbers.
    """
    place = place or DistributedEnv()
    training = model.training
    model.eval()
    nll, tokens = 0.0, 0
    for batch, counts in _share(windows.windows, rows, place):
        found = float(_nll(model, batch))
        if counts:
            nll += found
            tokens += sum(len(target) for _, target in batch)
    model.train(training)
    parts = distributed.exchanged((nll, tokens), place.world)
    nll, tokens = sum(part[0] for part in parts), sum(part[1] for part in parts)
    if not math.isfinite(nll):
        raise TrimixError(
            f"The model predicts text with a log-likelihood of {-nll}: its weights have become too "
            "large, or the base has some that are no numbers.",
            "begin again with a smaller learning_rate (and see whether the base is whole)",
        )
    return Measured(nll / max(1, tokens), nll / math.log(2) / max(1, windows.bytes))


def _share(
    windows: list[Window], rows: int, place: DistributedEnv
) -> Iterator[tuple[list[Window], bool]]:
    """This process's batches, and whether each counts.

    All processes run equally many, since a model that is spread over them needs all for each; who
    has one less runs the first again.
    """
    batches = [windows[i : i + rows] for i in range(0, len(windows), rows)]
    for turn in range(0, len(batches), place.world):
        mine = turn + place.rank
        yield (batches[mine], True) if mine < len(batches) else (batches[0], False)


def _nll(model: Any, batch: list[Window]) -> Tensor:
    """The summed NLL of a batch's targets."""
    inputs = [(*context, *target)[:-1] for context, target in batch]
    width = max(map(len, inputs))
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    mask = torch.zeros(len(batch), width, dtype=torch.long)
    targets = torch.full((len(batch), width), IGNORED)
    for row, ((context, target), one) in enumerate(zip(batch, inputs, strict=True)):
        ids[row, : len(one)] = torch.tensor(one)
        mask[row, : len(one)] = 1
        targets[row, len(context) - 1 : len(one)] = torch.tensor(target)
    device = next(model.parameters()).device
    output = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
    # A row at a time: the copies that fp32 and the softmax make are of the whole vocabulary.
    rows = zip(output.logits, targets.to(device), strict=True)  # [T, V], [T]
    sums = [
        cross_entropy(logits.float(), wanted, ignore_index=IGNORED, reduction="sum")
        for logits, wanted in rows
    ]
    return torch.stack(sums).sum()
