"""Prompts of token ids in, generated token ids out. No text and no lm-eval here.

Rows stop one by one, each at its own stop, and a row that is done leaves the batch at once. The
prompt's forward passes serve selection and generation alike. Greedy decoding synchronises with the
host once per token; sampling does so once more per sampled row.

Invariant 2: greedy tokens depend neither on the batch nor on the order. Sampling draws one uniform
number per token from a generator of the row's own, so it does not either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trimix_lm_eval.ensemble import LogitView
from trimix_lm_eval.errors import TrimixError, blame
from trimix_lm_eval.fuser import Fuser, mean_choice
from trimix_lm_eval.prefill import Prompt, choice_of, halving, prefill, readers_for
from trimix_lm_eval.prefix import Trunk, walk
from trimix_lm_eval.readers import Choice


class Sampling(NamedTuple):
    """How the next token is drawn from the fused distribution.

    Attributes:
        temperature: 0 is greedy.
        top_k: Keep the k most probable tokens; 0 keeps all.
        top_p: Keep the fewest most probable tokens that reach this mass; 1 keeps all.
        seed: Of the row's own generator.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


class Job(NamedTuple):
    """One prompt to be continued.

    Attributes:
        prompt: The context.
        max_new_tokens: Stop after so many, at least 1.
        ends: Token ids that end the text; they are not part of the result.
        stop: Told all tokens so far after each one; True stops the row.
        sampling: Greedy by default.
    """

    prompt: Prompt
    max_new_tokens: int
    ends: frozenset[int]
    stop: Callable[[list[int]], bool]
    sampling: Sampling = Sampling()


class Generated(NamedTuple):
    """A finished row.

    Attributes:
        ids: The new tokens, without an end token.
        choice: The weights that were used; where they are per token, their mean.
    """

    ids: list[int]
    choice: Choice


def generate(fuser: Fuser, jobs: Sequence[Job], batch_size: int) -> Iterator[tuple[int, Generated]]:
    """Continue prompts.

    Args:
        fuser: The sources and the policy.
        jobs: What to continue.
        batch_size: Rows per forward pass.

    Yields:
        (index, result), batch by batch, prompts that begin alike together.
    """
    for trunk, some in walk(fuser, [job.prompt for job in jobs]):

        def work(batch: Sequence[int], _: int, trunk: Trunk = trunk) -> list[tuple[int, Generated]]:
            with blame(batch.__getitem__):
                results = _generate_batch(fuser, trunk, [jobs[i] for i in batch])
            return list(zip(batch, results, strict=True))

        for finished in halving(some, batch_size, work):
            yield from finished


def _generate_batch(fuser: Fuser, trunk: Trunk, jobs: Sequence[Job]) -> list[Generated]:
    """Run one batch to its end."""
    ensemble = fuser.ensemble
    prompts = [job.prompt for job in jobs]
    readers = readers_for(fuser, prompts)
    start = trunk.start(prompts, readers)
    rows, hidden = prefill(ensemble, [trunk.rest(p) for p in prompts], readers, start)
    choices = [choice_of(fuser, p, reader) for p, reader in zip(prompts, readers, strict=True)]
    vectors = torch.tensor([fuser.vector(c) for c in choices], device=ensemble.device)  # [B, S]
    generators = [torch.Generator().manual_seed(job.sampling.seed) for job in jobs]

    done: list[list[int]] = [[] for _ in jobs]
    used = torch.zeros_like(vectors)  # [B, S], sums over the tokens of each row
    steps = torch.zeros(len(jobs), 1, device=vectors.device)
    alive = list(range(len(jobs)))
    while alive:
        samplers = [(jobs[i].sampling, generators[i]) for i in alive]
        view = LogitView(ensemble, hidden)
        with blame(alive.__getitem__):
            tokens, weights = next_tokens(fuser, view, vectors, samplers)
        rows_now = torch.tensor(alive, device=vectors.device)
        used[rows_now] += weights
        steps[rows_now] += 1
        staying = []
        for place, (row, token) in enumerate(zip(alive, tokens, strict=True)):
            job = jobs[row]
            if token in job.ends:
                continue
            done[row].append(token)
            if len(done[row]) < job.max_new_tokens and not job.stop(done[row]):
                staying.append(place)
        if len(staying) < len(alive):
            if not staying:
                break
            rows.select(staying)
            vectors = vectors[torch.tensor(staying, device=vectors.device)]
        alive = [alive[place] for place in staying]
        ids = torch.tensor([[done[row][-1]] for row in alive])
        ones = torch.ones(len(alive), 1, dtype=torch.bool)
        hidden = rows.extend(ids, ones, ones)
    mean = (used / steps).cpu()  # [B, S]
    return [
        Generated(ids, choice or mean_choice(fuser, mean[row : row + 1]))
        for row, (ids, choice) in enumerate(zip(done, choices, strict=True))
    ]


def next_tokens(
    fuser: Fuser,
    view: LogitView,
    vectors: Tensor,
    samplers: Sequence[tuple[Sampling, torch.Generator]],
) -> tuple[list[int], Tensor]:
    """The next token of each row, and the ``[N, S]`` weights in force.

    Args:
        fuser: The sources and the policy.
        view: N positions, one per row.
        vectors: ``[N, S]`` source weights.
        samplers: How to draw, and each row's generator.
    """
    best, tops, used, drawn = [], [], [], {}
    for where, logits in view.chunks():
        fused, weights = fuser.fused(logits, vectors[where])
        used.append(weights)
        top = fused.max(dim=-1)
        best.append(top.indices)
        tops.append(top.values)
        for row in range(where.start, where.stop):
            sampling, generator = samplers[row]
            if sampling.temperature > 0:
                drawn[row] = draw(fused[row - where.start], sampling, generator)
    # Token and its logit travel together: one synchronisation, and NaN cannot pass unseen.
    both = torch.stack([torch.cat(best).double(), torch.cat(tops).double()]).cpu()
    view.check(both[1].isfinite())
    tokens = [drawn.get(row, int(token)) for row, token in enumerate(both[0].tolist())]
    return tokens, torch.cat(used)


def draw(fused: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Draw a token: temperature, then top-k, then top-p, then one uniform number.

    Args:
        fused: ``[V]`` logits.
        sampling: How to draw.
        generator: On the CPU; advances by one number.
    """
    p, ids = (fused / sampling.temperature).softmax(dim=-1).sort(descending=True, stable=True)
    if sampling.top_k > 0:
        p = p[: sampling.top_k]
    p = p / p.sum()
    if sampling.top_p < 1.0:
        before = p.cumsum(dim=0) - p
        p = p[before < sampling.top_p]
    total = p.double().cumsum(dim=0)
    u = torch.rand((), generator=generator, dtype=torch.float64).to(total.device) * total[-1]
    return int(ids[int(torch.searchsorted(total, u, right=True).clamp_max(len(total) - 1))])


def check_sampling(sampling: Sampling) -> Sampling:
    """Return the sampling if its numbers make sense.

    Raises:
        TrimixError: One of them does not.
    """
    if not 0 <= sampling.temperature < float("inf"):
        raise TrimixError(
            f"temperature={sampling.temperature} is not a number from 0.", "0 is greedy"
        )
    if not 0 < sampling.top_p <= 1:
        raise TrimixError(f"top_p={sampling.top_p} is not in (0, 1].", "1 keeps all tokens")
    if sampling.top_k < 0:
        raise TrimixError(f"top_k={sampling.top_k} is negative.", "0 keeps all tokens")
    return sampling
