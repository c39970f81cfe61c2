"""Whether documents in one row stay apart in a model, found out by trial before it is trained.

Position ids that begin anew with each document are all that a row says of where one begins: most
models of attention alone make their masks of them. States of recurrent layers and what alibi adds
know nothing of them, and run from one document into the next. No family is known by its name.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trimix_lm_eval.utils.errors import is_out_of_memory

#: Tokens of each of two documents: more than a causal convolution reaches.
_TOKENS = 16
#: The logits may move so many times as much as they do where embeddings move by one rounding.
#: Experts round otherwise when they are given other tokens beside; all others give the same bits.
_ROUNDINGS = 30


@torch.no_grad()
def documents_stay_apart(model: Any) -> bool:
    """Whether the logits of a document stay the same when the one before it in the row changes.

    Args:
        model: A causal LM with ``use_cache`` off in its config, on the device it is trained on.
    """
    size = model.get_input_embeddings().weight.shape[0]
    first, other, second = (torch.arange(3 * _TOKENS) * 7919 % size).to(model.device).chunk(3)
    positions = torch.arange(_TOKENS, device=model.device).repeat(2)[None]

    def logits(before: Tensor) -> Tensor:
        found: Tensor = model(
            input_ids=torch.cat([before, second])[None], position_ids=positions
        ).logits[0, _TOKENS:]
        return found.float()

    training = model.training
    model.eval()
    try:
        wanted = logits(first)
        moved = (logits(other) - wanted).norm()
        if not moved:
            return True
        hook = model.get_input_embeddings().register_forward_hook(_rounded)
        try:
            rounding = (logits(first) - wanted).norm()
        finally:
            hook.remove()
    except Exception as error:  # a model may refuse position ids in any words
        if is_out_of_memory(error):
            raise
        return False
    finally:
        model.train(training)
    return bool(moved <= _ROUNDINGS * rounding)


def _rounded(_: Any, __: Any, embeddings: Tensor) -> Tensor:
    """Embeddings, every other number moved by the smallest share that its type can tell."""
    signs = torch.arange(embeddings.numel(), device=embeddings.device) * 7919 % 13 % 2 * 2 - 1
    moved: Tensor = embeddings * (1 + signs.view_as(embeddings) * torch.finfo(embeddings.dtype).eps)
    return moved
