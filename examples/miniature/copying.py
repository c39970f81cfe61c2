"""Copying from the first step: induction heads written into a Llama's weights before training.

An induction head finds where what stands last stood before, and says what came next; it needs a
head in an earlier layer that brings each token beside its successor (Olsson et al. 2022,
"In-context Learning and Induction Heads"). Large models find these heads in the first billions of
tokens. Ours read some ten million, which is too few: plainly initialised, a model of this size
copies nothing after four million. So the heads are written down here; training may change them as
it may everything.

Where a text goes on after one token is often ambiguous (after a particle, a comma, the ``=`` of a
glossary), so these heads look for the last *two* tokens:

    layer 0: head k brings the token k + 1 places back, k = 0, 1
    layer 1: heads 0 and 1 look for a place p with token[p - 1] = token[t] and token[p - 2] =
             token[t - 1], half of the evidence for each, and copy token[p]

The residual stream is laid out so: the first half holds the token, then come two zones for what
layer 0 brings, and the last dimension is a constant.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

LAYERS = (0, 1)  # in which heads are written
_TOKEN = 0.1  # standard deviation of a token's dimensions
_CONSTANT = 0.5  # the last dimension; after the norm it is about 6
_SHARPNESS = 12.0  # by how much, in logits, a head of layer 0 prefers its place
_MATCH = 2.5  # weight of a dimension in the comparison of layer 1
_COPY = 0.4  # how loudly layer 1 says what it found
_FAST, _SLOW = 0.05, 0.006  # radians per place: pairs that tell places apart, and that do not


class Heads(NamedTuple):
    """The weights of a layer's attention, by head: views, which can be written to.

    Attributes:
        q: [heads, size, width]
        k: [heads, size, width]
        v: [heads, size, width]
        o: [width, heads, size]
    """

    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor


@torch.no_grad()
def write_heads(model: LlamaForCausalLM) -> None:
    """Writes the heads into an untrained model with tied embeddings.

    Args:
        model: Of two layers and two heads at least, with as many key as query heads.
    """
    config = model.config
    width, size = config.hidden_size, config.head_dim
    token = width // 2  # dimensions of the token
    zone = (width - 1 - token) // 2  # and of each zone
    turns = config.rope_parameters["rope_theta"] ** (-torch.arange(0, size, 2) / size)  # [size / 2]
    embedding = model.get_input_embeddings().weight  # [V, width]
    embedding.zero_()
    embedding[:, :token].normal_(std=_TOKEN)
    embedding[:, -1] = _CONSTANT
    for layer in model.model.layers:  # what is random whispers
        layer.self_attn.o_proj.weight.mul_(0.5)
        layer.mlp.down_proj.weight.mul_(0.5)
    for back in (1, 2):
        _bring(_heads(model, 0), back, turns, token, zone)
    for which in (0, 1):
        _look_up(_heads(model, 1), which, turns, token, zone)


def _heads(model: LlamaForCausalLM, layer: int) -> Heads:
    attention, count = model.model.layers[layer].self_attn, model.config.num_attention_heads
    size = model.config.head_dim
    q, k, v = (
        projection.weight.view(count, size, -1)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    return Heads(q, k, v, attention.o_proj.weight.view(-1, count, size))


def _clear(heads: Heads, which: int) -> None:
    for weight in heads[:3]:
        weight[which] = 0
    heads.o[:, which] = 0


def _bring(heads: Heads, back: int, turns: Tensor, token: int, zone: int) -> None:
    """Makes a head that attends to the place so many back, and brings its token into a zone.

    The query is the key turned by so many places, so that their product is largest there.
    """
    which, half, size = back - 1, len(turns), heads.q.shape[1]
    _clear(heads, which)
    loud = (_SHARPNESS * size**0.5 / 36) ** 0.5
    for i, turn in enumerate(turns.tolist()):
        if turn > _FAST:
            heads.k[which, i, -1] = loud
            heads.q[which, i, -1] = loud * math.cos(back * turn)
            heads.q[which, i + half, -1] = -loud * math.sin(back * turn)
    for j in range(min(zone, size)):
        heads.v[which, j, j] = 1
        heads.o[token + which * zone + j, which, j] = _TOKEN


def _look_up(heads: Heads, which: int, turns: Tensor, token: int, zone: int) -> None:
    """Makes a head that finds the last two tokens further up, and copies what came next.

    Only rotary pairs that hardly turn compare contents whatever the distance; each head has other
    dimensions of the tokens in them.
    """
    _clear(heads, which)
    size, slow = heads.q.shape[1], [i for i, turn in enumerate(turns.tolist()) if turn < _SLOW]
    rows = [*slow, *(i + len(turns) for i in slow)]
    each = min(len(rows) // 2, zone)
    first = which * max(0, min(zone, token) - each)
    for j in range(each):
        now, before, at = rows[2 * j], rows[2 * j + 1], first + j
        heads.q[which, now, at] = _MATCH
        heads.k[which, now, token + at] = _MATCH
        heads.q[which, before, token + at] = _MATCH
        heads.k[which, before, token + zone + at] = _MATCH
    copied = min(size, token)
    start = which * (token - copied)
    for j in range(copied):
        heads.v[which, j, start + j] = 1
        heads.o[start + j, which, j] = _COPY


@torch.no_grad()
def accuracy(model: LlamaForCausalLM, length: int = 200, kinds: int = 100, rows: int = 4) -> float:
    """How often the model goes on rightly with a text of random tokens that is repeated.

    Args:
        model: In fp32.
        length: Tokens of the text.
        kinds: Of how many different ones it is made: the fewer, the oftener does one token have
            several successors.
        rows: Texts.

    Returns:
        From 0 to 1, over the second half but for its first two tokens.
    """
    rng = torch.Generator().manual_seed(0)
    size = model.config.vocab_size
    drawn = torch.stack([torch.randperm(size, generator=rng)[:kinds] for _ in range(rows)])
    text = drawn.gather(1, torch.randint(kinds, (rows, length), generator=rng))  # [rows, length]
    ids = torch.cat([text, text], dim=1)
    said = model(input_ids=ids, use_cache=False).logits[:, length + 1 : -1].argmax(-1)
    return float((said == ids[:, length + 2 :]).float().mean())
