"""Gumbel noise by counter: a function of (seed, step, token id), the same on every device.

A generator with a state gives other numbers on a GPU than on a CPU, other ones for other shapes,
and it cannot be captured in a CUDA graph with a seed for each row. Here every number is computed
from where it stands (Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3"): seed and
step make a key of 64 bits, of which one half is added to the token's id and the other joins after
a first round of mixing. A round is the finaliser of MurmurHash3, in which each bit of a word of 32
bits decides every bit of the result. All of it is integer arithmetic that overflows, on tensors, so
that the step may be a tensor on a GPU as well.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import torch
from torch import Tensor

#: The multipliers of MurmurHash3's finaliser, as signed numbers of 32 bits.
_FIRST, _SECOND = 0x85EBCA6B - 2**32, 0xC2B2AE35 - 2**32
#: 2^32 over the golden ratio, signed: the second half of a key counts in steps of it.
_GOLDEN = 0x9E3779B9 - 2**32
#: The number before 1 in fp32.
_BELOW_ONE = 1 - 2**-24


@lru_cache(maxsize=4096)
def seed_words(seed: int) -> tuple[int, int]:
    """Two words of 32 bits, signed, of a seed of any size."""
    digest = hashlib.blake2b(str(seed).encode(), digest_size=8).digest()
    first, second = digest[:4], digest[4:]
    return int.from_bytes(first, "big", signed=True), int.from_bytes(second, "big", signed=True)


def gumbel(seeds: Tensor, steps: Tensor, vocab_size: int) -> Tensor:
    """Independent standard Gumbel noise for every token of the vocabulary.

    Args:
        seeds: ``[N, 2]`` int32, the `seed_words` of N draws.
        steps: ``[N]`` integers, which token of its text each draw is.
        vocab_size: V, the number of token ids.

    Returns:
        ``[N, V]`` fp32, on the device of ``seeds``.
    """
    step = steps.to(torch.int32)
    key = _mix(seeds[:, 0] + step), _mix(seeds[:, 1] ^ _mix(step * _GOLDEN))
    ids = torch.arange(vocab_size, dtype=torch.int32, device=seeds.device)
    words = _mix(ids[None] + key[0][:, None])  # [N, V]
    return _from_words(_mix(words.bitwise_xor_(key[1][:, None])))


def _from_words(words: Tensor) -> Tensor:
    """Gumbel noise of uniform int32 words."""
    # As a number without a sign, w, it stands for u = (w + 1/2) / 2^32, whose low end decides the
    # highest noise and keeps all its digits.
    u = words.float().add_(0.5).mul_(2.0**-32).add_(words < 0)
    return u.clamp_max_(_BELOW_ONE).neg_().log1p_().neg_().log_().neg_()


def _mix(words: Tensor) -> Tensor:
    """One round, in place; what comes in from the left of a shift is 0, as without a sign."""
    words.bitwise_xor_((words >> 16).bitwise_and_(0xFFFF)).mul_(_FIRST)
    words.bitwise_xor_((words >> 13).bitwise_and_(0x7FFFF)).mul_(_SECOND)
    return words.bitwise_xor_((words >> 16).bitwise_and_(0xFFFF))
