"""Requests of token ids in, log-likelihoods out, for all configs at once. No text, no lm-eval.

A question is one context with several continuations. Its context runs once, and what contexts have
in common once for all of them; continuations run on copies of the context's cache. Logits exist
only where a token is judged, a chunk at a time, and only gather minus logsumexp leaves them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trimix_lm_eval.engine.fuser import Fuser, mean_choice
from trimix_lm_eval.engine.input_batch import InputBatch, LogitView
from trimix_lm_eval.engine.logprobs import judge
from trimix_lm_eval.engine.prefill import (
    Prompt,
    choices_of,
    cut,
    feed,
    halving,
    padded,
    prefill,
    readers_for,
)
from trimix_lm_eval.engine.prefix_tree import PrefixNode, read_prompts, walk
from trimix_lm_eval.fusion.collectors import Choice
from trimix_lm_eval.utils.errors import blame


class ScoringRequest(NamedTuple):
    """One continuation of a prompt.

    Attributes:
        prompt: Its context, untruncated; requests with equal prompts share it.
        continuation: The tokens to be scored.
        shown: What policies choose by, if it is not the whole context: the part of it that all
            options of a question have in common.
    """

    prompt: Prompt
    continuation: tuple[int, ...]
    shown: Prompt | None = None


class Score(NamedTuple):
    """A request scored under one fusion config.

    Attributes:
        log_likelihood: Sum over the continuation, natural logarithm.
        is_greedy: Whether every token is the most probable one.
        choice: The weights that were used; for `gate` their mean over the tokens.
    """

    log_likelihood: float
    is_greedy: bool
    choice: Choice | None


def together(parts: Sequence[Score]) -> Score:
    """The score of a text that was scored in parts."""
    total = sum(part.log_likelihood for part in parts)
    return Score(total, all(part.is_greedy for part in parts), parts[0].choice)


#: So many batches of contexts are scored at a time, where their choices take a pass of their own.
#: What they begin with runs once for each such block.
BLOCK = 16

#: What each fusion config's policy has chosen.
Choices = tuple[Choice | None, ...]
#: (index of the request, index of the fusion config, score)
Found = tuple[int, int, Score]


class _Question(NamedTuple):
    """A context with its continuations.

    Attributes:
        prompt: What policies choose by: one for all options, whatever their lengths.
        context: What the continuations are scored after: ``prompt`` cut to fit.
        options: Index of the request and its continuation.
    """

    prompt: Prompt
    context: tuple[int, ...]
    options: list[tuple[int, tuple[int, ...]]]

    @property
    def run(self) -> Prompt:
        """The context as it is run; if it was cut, nobody chooses by it."""
        return self.prompt if self.prompt.ids == self.context else Prompt(self.context)


def _questions(requests: Sequence[ScoringRequest], max_length: int) -> list[_Question]:
    """Group requests by context; cut contexts from the left where they must be."""
    groups: dict[tuple[Prompt, tuple[int, ...]], _Question] = {}
    for index, (prompt, continuation, part) in enumerate(requests):
        too_many = max(0, len(prompt.ids) + len(continuation) - 1 - max_length)
        context = prompt.ids[too_many:]
        shown = cut(part or prompt, max_length)
        question = groups.setdefault((shown, context), _Question(shown, context, []))
        question.options.append((index, continuation))
    return list(groups.values())


def score(
    fuser: Fuser, requests: Sequence[ScoringRequest], batch_size: int, max_length: int
) -> Iterator[Found]:
    """Score continuations.

    Args:
        fuser: The sources and the fusion configs.
        requests: Contexts of at least one token, continuations of at least one and at most
            ``max_length`` tokens.
        batch_size: Rows per forward pass.
        max_length: Context length; longer contexts are cut from the left, as `hf` does.

    Yields:
        (index of the request, index of the config, score), each as soon as it is known; contexts
        that begin alike together.
    """
    chosen: dict[Prompt, Choices] = {}
    for questions in _blocks(fuser, _questions(requests, max_length), batch_size):
        chosen |= _choices_apart(fuser, questions, batch_size)
        yield from _score_questions(fuser, questions, batch_size, chosen)


def _blocks(fuser: Fuser, questions: list[_Question], batch_size: int) -> Iterator[list[_Question]]:
    """What to choose for before any of it is scored: all, if that takes no pass of its own.

    Otherwise a few batches, those that begin alike together: the first answers must not wait for
    all choices, which are half of the work, nor a process that dies lose them.
    """
    apart = [q for q in questions if q.run is not q.prompt]
    if all(readers is None for readers in readers_for(fuser, [q.prompt for q in apart])):
        yield questions
        return
    apart.sort(key=lambda q: (q.prompt.ids, q.context))
    size = BLOCK * batch_size
    ends = [
        end
        for end in range(1, len(apart) + 1)
        if end == len(apart) or apart[end].prompt != apart[end - 1].prompt
    ]
    start = 0
    for end in ends:  # never between the options of a question
        if end - start >= size or end == len(apart):
            yield apart[start:end]
            start = end
    yield [q for q in questions if q.run is q.prompt]


def _score_questions(
    fuser: Fuser, questions: Sequence[_Question], batch_size: int, chosen: dict[Prompt, Choices]
) -> Iterator[Found]:
    """Score questions; ``chosen`` has the choices that were made apart."""
    for trunk, some in walk(
        fuser, [q.run for q in questions], lambda i: questions[i].options[0][0]
    ):

        def work(batch: Sequence[int], size: int, trunk: PrefixNode = trunk) -> list[Found]:
            return _score_batch(fuser, trunk, [questions[i] for i in batch], size, chosen)

        for scores in halving(fuser.ensemble, some, batch_size, work, trunk.evict):
            yield from scores


def _choices_apart(
    fuser: Fuser, questions: Sequence[_Question], batch_size: int
) -> dict[Prompt, Choices]:
    """The choices by prompts that are not run as contexts: those cut, or common to options."""
    apart: dict[Prompt, int] = {}
    for question in questions:
        if question.run is not question.prompt:
            apart.setdefault(question.prompt, question.options[0][0])
    prompts, first = list(apart), list(apart.values())
    if not any(readers is not None for readers in readers_for(fuser, prompts)):
        return {prompt: choices_of(fuser, prompt, None) for prompt in prompts}
    read = read_prompts(fuser, prompts, batch_size, first.__getitem__)
    return {prompts[i]: choices_of(fuser, prompts[i], readers) for i, readers in read}


def _score_batch(
    fuser: Fuser,
    trunk: PrefixNode,
    batch: Sequence[_Question],
    batch_size: int,
    chosen: dict[Prompt, Choices],
) -> list[Found]:
    """Prefill the contexts, choose, then run the continuations ``batch_size`` rows at a time.

    ``chosen`` holds the choices so far, those made apart among them.
    """
    contexts = [q.run for q in batch]
    readers = [
        None if q.prompt in chosen else mine
        for mine, q in zip(readers_for(fuser, [q.prompt for q in batch]), batch, strict=True)
    ]
    start = trunk.start(contexts, readers)
    with blame(lambda row: batch[row].options[0][0]):
        rows, ends = prefill(fuser.ensemble, [trunk.rest(c) for c in contexts], readers, start)
    for question, mine in zip(batch, readers, strict=True):
        if question.prompt not in chosen:
            chosen[question.prompt] = choices_of(fuser, question.prompt, mine)
    choices = [chosen[q.prompt] for q in batch]

    todo = [(row, i, cont) for row, q in enumerate(batch) for i, cont in q.options]
    todo.sort(key=lambda item: -len(item[2]))
    scores = []
    # A continuation of one token needs no forward pass: it is predicted where the context ends.
    single = [item for item in todo if len(item[2]) == 1]
    several = [item for item in todo if len(item[2]) > 1]
    runs = [several[s : s + batch_size] for s in range(0, len(several), batch_size)]
    for part in [*runs, single] if single else runs:
        scores += _score_options(fuser, rows, ends, choices, part)
    return scores


def _score_options(
    fuser: Fuser,
    rows: InputBatch,
    ends: Sequence[Tensor],
    choices: Sequence[Choices],
    part: Sequence[tuple[int, int, tuple[int, ...]]],
) -> list[Found]:
    """Score continuations, given as (row of the context, index of the request, tokens)."""
    of_row = [row for row, _, _ in part]
    at = torch.tensor(of_row)
    first = [h[at.to(h.device)] for h in ends]  # S times [O, H]: predicts each first token
    pieces: list[list[Tensor]] = [[h[r : r + 1] for h in first] for r in range(len(part))]
    if max(len(c) for _, _, c in part) > 1:
        ids, valid = padded([c[:-1] for _, _, c in part])
        for r, _, hs in feed(rows.branch(of_row), ids, valid, valid):
            pieces[r] = [torch.cat(pair) for pair in zip(pieces[r], hs, strict=True)]
    hidden = [torch.cat([piece[s] for piece in pieces]) for s in range(len(ends))]

    device = fuser.ensemble.device
    lengths = [len(c) for _, _, c in part]
    targets = torch.tensor([token for _, _, c in part for token in c], device=device)
    vectors = torch.tensor([[fuser.vector(c) for c in choices[row]] for row in of_row])  # [O, R, S]
    vectors = vectors.repeat_interleave(torch.tensor(lengths), dim=0)  # [N, R, S]
    owners = [index for _, index, c in part for _ in c]  # of each position, its request
    with blame(owners.__getitem__):
        view = LogitView(fuser.ensemble, hidden)
        judged = judge(fuser, view, targets, vectors.transpose(0, 1))
    scores = []
    for which, found in enumerate(judged):
        split = zip(*(column.split(lengths) for column in found), strict=True)
        for (row, index, _), (log_p, hit, used) in zip(part, split, strict=True):
            choice = choices[row][which] or mean_choice(fuser, used)
            score = Score(float(log_p.double().sum()), bool(hit.all()), choice)
            scores.append((index, which, score))
    return scores
