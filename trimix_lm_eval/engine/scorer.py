"""Scoring: requests of token ids in, log-likelihoods out, for all fusion configs at once.

A question is one context with several continuations. Its context runs once, and what contexts have
in common once for all of them; continuations run on rows that share the context's cache. Logits
exist only where a token is scored, a chunk at a time (invariant 4), and only gather minus logsumexp
leaves them.

Invariant 5: policies choose by the context alone, never by a continuation; all options of a
question share the choice. Where they differ in context, it is made by the part that their contexts
have in common.

Longer than most modules, since every kind of request (one token, several, none, more than the
context length) ends in one way to score a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trimix_lm_eval.engine.input_batch import InputBatch
from trimix_lm_eval.engine.logprobs import compute_logprobs
from trimix_lm_eval.engine.memory import find_executable_batch_size
from trimix_lm_eval.engine.model_runner import Fuser, LogitView, always, blame, mean_choice
from trimix_lm_eval.engine.prefill import (
    PrefixNode,
    PrefixTree,
    PromptCollectors,
    choices_of,
    collectors_for,
    cut,
    padded,
    prefill,
    shared_length,
)
from trimix_lm_eval.engine.request import Prompt, Score, ScoringRequest
from trimix_lm_eval.fusion.collectors import Choice
from trimix_lm_eval.fusion.logits import to_device
from trimix_lm_eval.utils.errors import warn_once
from trimix_lm_eval.utils.windows import continuation_windows

#: So many batches of contexts are scored at a time, where their choices take a pass of their own.
#: What they share runs once for each such block.
BLOCK = 16

#: What the policy of each fusion config has chosen.
Choices = tuple[Choice | None, ...]
#: (index of the request, index of the fusion config, score)
Scored = tuple[int, int, Score]


def score(
    fuser: Fuser, requests: Sequence[ScoringRequest], batch_size: int, max_length: int
) -> Iterator[Scored]:
    """Score continuations.

    Args:
        fuser: The sources and the fusion configs.
        requests: What to score, in any order. A context has at least one token. An empty
            continuation has log-likelihood 0; one longer than ``max_length`` is scored in windows.
        batch_size: Rows per forward pass.
        max_length: Context length in tokens; longer contexts are cut from the left, as ``hf`` does.

    Yields:
        (index of the request, index of the fusion config, score), each as soon as it is known;
        contexts that share a prefix together.

    Raises:
        TrimixError: Memory runs out with a batch of one.
        NotFinite: A source's logits are not numbers.
    """
    fitting = []
    for index, request in enumerate(requests):
        if not request.continuation:
            warn_once("An empty continuation has log-likelihood 0: scored so.")
            for which in range(len(fuser.configs)):
                yield index, which, Score(0.0, True, None)
        elif len(request.continuation) > max_length:
            with blame(always(index)):
                scores = _score_long(fuser, request, max_length)
            for which, one in enumerate(scores):
                yield index, which, one
        else:
            fitting.append(index)
    chosen: dict[Prompt, Choices] = {}
    questions = questions_of(requests, fitting, max_length)
    for some in blocks(fuser, questions, batch_size):
        chosen |= _choices_apart(fuser, some, batch_size)
        yield from _score_questions(fuser, some, batch_size, chosen)


def sum_scores(parts: Sequence[Score]) -> Score:
    """The score of a text that was scored in parts."""
    total = sum(part.log_likelihood for part in parts)
    return Score(total, all(part.is_greedy for part in parts), parts[0].choice)


def collect_prompts(
    fuser: Fuser,
    prompts: Sequence[Prompt],
    batch_size: int,
    request_of: Callable[[int], int] = int,
) -> Iterator[tuple[int, PromptCollectors | None]]:
    """Show prompts to collectors and drop their caches: for choices made apart from any scoring.

    Args:
        fuser: The sources and the fusion configs.
        prompts: In any order.
        batch_size: Rows per forward pass.
        request_of: From the index of a prompt to the index that errors are to name.

    Yields:
        The index of a prompt, and its collectors; None if no policy looks at it.
    """
    for node, some in PrefixTree(fuser, prompts, request_of).walk():

        def work(
            indices: Sequence[int], _: int, node: PrefixNode = node
        ) -> list[tuple[int, PromptCollectors | None]]:
            mine = [prompts[i] for i in indices]
            collectors = collectors_for(fuser, mine)
            batch = node.start(mine, collectors)
            with blame(lambda row: request_of(indices[row])):
                prefill(fuser.ensemble, [node.rest(p) for p in mine], collectors, batch)
            return list(zip(indices, collectors, strict=True))

        for found in find_executable_batch_size(fuser.ensemble, some, batch_size, work, node.evict):
            yield from found


class Question(NamedTuple):
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
        """The context as it is run; if it was cut, no policy chooses by it."""
        return self.prompt if self.prompt.ids == self.context else Prompt(self.context)


def _shared_contexts(requests: Sequence[ScoringRequest]) -> dict[int, Prompt]:
    """By index of the request what policies choose by, where options differ in context.

    A context of a single token, the prefix token, asks for the answer without its question (as
    some metrics do): it takes part in the choice of its question, but has no say in it.
    """
    options: dict[Hashable, list[int]] = {}
    for index, request in enumerate(requests):
        if request.question is not None:
            options.setdefault(request.question, []).append(index)
    shown: dict[int, Prompt] = {}
    for indices in options.values():
        prompts = dict.fromkeys(requests[i].prompt for i in indices)
        if len(prompts) == 1:
            continue
        telling = [p for p in prompts if len(p.ids) > 1] or list(prompts)
        first = telling[0]
        length = min(shared_length(first.ids, p.ids) for p in telling) or 1
        mask = first.prompt_mask[:length] if first.prompt_mask else None
        shared = first._replace(ids=first.ids[:length], prompt_mask=mask)
        shown.update(dict.fromkeys(indices, shared))
    return shown


def _score_long(fuser: Fuser, request: ScoringRequest, max_length: int) -> list[Score]:
    """Score a continuation longer than the context length, in windows, for each fusion config."""
    shown = cut(request.prompt, max_length)
    ((_, collectors),) = collect_prompts(fuser, [shown], 1)
    choices = choices_of(fuser, shown, collectors)
    points = tuple(choice.weights if choice else None for choice in choices)
    windows = continuation_windows(request.prompt.ids, request.continuation, max_length)
    parts: list[list[Score]] = [[] for _ in choices]
    requests = [ScoringRequest(Prompt(a, points=points), b) for a, b in reversed(windows)]
    for _, which, one in score(fuser, requests, 1, max_length):
        parts[which].append(one)
    scores = [sum_scores(mine) for mine in parts]
    return [one._replace(choice=c or one.choice) for c, one in zip(choices, scores, strict=True)]


def questions_of(
    requests: Sequence[ScoringRequest], indices: Sequence[int], max_length: int
) -> list[Question]:
    """Group some requests by context; cut contexts from the left where they must be."""
    shown = _shared_contexts(requests)
    groups: dict[tuple[Prompt, tuple[int, ...]], Question] = {}
    for index in indices:
        prompt, continuation, _ = requests[index]
        too_many = max(0, len(prompt.ids) + len(continuation) - 1 - max_length)
        context = prompt.ids[too_many:]
        by = cut(shown.get(index, prompt), max_length)
        question = groups.setdefault((by, context), Question(by, context, []))
        question.options.append((index, continuation))
    return list(groups.values())


def blocks(fuser: Fuser, questions: list[Question], batch_size: int) -> Iterator[list[Question]]:
    """What to choose for before any of it is scored: all, if that takes no pass of its own.

    Otherwise a few batches, those that share a prefix together: the first answers must not wait for
    all choices, which are half of the work, nor a process that dies lose them.
    """
    apart = [q for q in questions if q.run is not q.prompt]
    if all(mine is None for mine in collectors_for(fuser, [q.prompt for q in apart])):
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
    fuser: Fuser, questions: Sequence[Question], batch_size: int, chosen: dict[Prompt, Choices]
) -> Iterator[Scored]:
    """Score questions; ``chosen`` has the choices that were made apart."""
    contexts = [question.run for question in questions]
    for node, some in PrefixTree(fuser, contexts, lambda i: questions[i].options[0][0]).walk():

        def work(indices: Sequence[int], size: int, node: PrefixNode = node) -> list[Scored]:
            return _score_batch(fuser, node, [questions[i] for i in indices], size, chosen)

        for scores in find_executable_batch_size(
            fuser.ensemble, some, batch_size, work, node.evict
        ):
            yield from scores


def _choices_apart(
    fuser: Fuser, questions: Sequence[Question], batch_size: int
) -> dict[Prompt, Choices]:
    """The choices by prompts that are not run as contexts: those cut, or shared by options."""
    apart: dict[Prompt, int] = {}
    for question in questions:
        if question.run is not question.prompt:
            apart.setdefault(question.prompt, question.options[0][0])
    prompts, first = list(apart), list(apart.values())
    if not any(mine is not None for mine in collectors_for(fuser, prompts)):
        return {prompt: choices_of(fuser, prompt, None) for prompt in prompts}
    seen = collect_prompts(fuser, prompts, batch_size, first.__getitem__)
    return {prompts[i]: choices_of(fuser, prompts[i], mine) for i, mine in seen}


def _score_batch(
    fuser: Fuser,
    node: PrefixNode,
    questions: Sequence[Question],
    batch_size: int,
    chosen: dict[Prompt, Choices],
) -> list[Scored]:
    """Prefill the contexts, choose, then run the continuations ``batch_size`` rows at a time.

    ``chosen`` holds the choices so far, those made apart among them.
    """
    contexts = [q.run for q in questions]
    collectors = [
        None if q.prompt in chosen else mine
        for mine, q in zip(
            collectors_for(fuser, [q.prompt for q in questions]), questions, strict=True
        )
    ]
    start = node.start(contexts, collectors)
    with blame(lambda row: questions[row].options[0][0]):
        batch, ends = prefill(fuser.ensemble, [node.rest(c) for c in contexts], collectors, start)
    for question, mine in zip(questions, collectors, strict=True):
        if question.prompt not in chosen:
            chosen[question.prompt] = choices_of(fuser, question.prompt, mine)
    choices = [chosen[q.prompt] for q in questions]

    todo = [(row, i, tokens) for row, q in enumerate(questions) for i, tokens in q.options]
    todo.sort(key=lambda item: -len(item[2]))
    scores = []
    # A continuation of one token needs no forward pass: it is predicted where the context ends.
    single = [item for item in todo if len(item[2]) == 1]
    several = [item for item in todo if len(item[2]) > 1]
    runs = [several[s : s + batch_size] for s in range(0, len(several), batch_size)]
    for part in [*runs, single] if single else runs:
        scores += _score_options(fuser, batch, ends, choices, part)
    return scores


def _score_options(
    fuser: Fuser,
    batch: InputBatch,
    ends: Sequence[Tensor],
    choices: Sequence[Choices],
    part: Sequence[tuple[int, int, tuple[int, ...]]],
) -> list[Scored]:
    """Score continuations.

    Args:
        fuser: The sources and the fusion configs.
        batch: The contexts.
        ends: One ``[B, H]`` tensor per source: hidden states at the contexts' last tokens.
        choices: For each context.
        part: (row of the context, index of the request, token ids) of each continuation.
    """
    of_row = [row for row, _, _ in part]
    at = torch.tensor(of_row)
    first = [h[to_device(at, h.device)] for h in ends]  # S times [O, H]: predicts each first token
    pieces: list[list[Tensor]] = [[h[r : r + 1] for h in first] for r in range(len(part))]
    if max(len(tokens) for _, _, tokens in part) > 1:
        ids, valid = padded([tokens[:-1] for _, _, tokens in part])
        for r, _, hs in batch.fork_shared(of_row).feed(ids, valid, valid):
            pieces[r] = [torch.cat(pair) for pair in zip(pieces[r], hs, strict=True)]
    hidden = [torch.cat([piece[s] for piece in pieces]) for s in range(len(ends))]

    lengths = [len(tokens) for _, _, tokens in part]
    targets = torch.tensor([token for _, _, tokens in part for token in tokens])
    targets = to_device(targets, fuser.ensemble.device)
    vectors = torch.tensor([[fuser.vector(c) for c in choices[row]] for row in of_row])  # [O, R, S]
    vectors = vectors.repeat_interleave(torch.tensor(lengths), dim=0)  # [N, R, S]
    request_at = [index for _, index, tokens in part for _ in tokens]  # of each position
    with blame(request_at.__getitem__):
        view = LogitView(fuser.ensemble, hidden)
        found = compute_logprobs(fuser, view, targets, vectors.transpose(0, 1))
    scores = []
    for which, one in enumerate(found):
        split = zip(*(column.split(lengths) for column in one), strict=True)
        for (row, index, _), (logprobs, greedy, used) in zip(part, split, strict=True):
            choice = choices[row][which] or mean_choice(fuser, which, used)
            score = Score(float(logprobs.double().sum()), bool(greedy.all()), choice)
            scores.append((index, which, score))
    return scores
