"""Scoring: requests of token ids in, log-likelihoods out, for all fusion configs at once.

A question is one context with several continuations. Its context runs once, and what contexts have
in common once for all of them; what follows it runs as one tree, so that what continuations have in
common runs once, too. Logits exist only where a token is scored, a chunk at a time (invariant 4),
and only gather minus logsumexp leaves them.

Invariant 5: policies choose by the context alone, never by a continuation; all options of a
question share the choice. Where they differ in context, it is made by the part that their contexts
have in common, and the rest of each context runs with its continuation.

Longer than most modules, since every kind of request (one token, several, none, more than the
context length) ends in one way to score a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from trimix_lm_eval.engine.kept import keep
from trimix_lm_eval.engine.memory import find_executable_batch_size
from trimix_lm_eval.engine.model_runner import Ensemble, Fuser, always, blame
from trimix_lm_eval.engine.options import Choices, Continuation, Prefilled, Scored, score_options
from trimix_lm_eval.engine.prefill import (
    SHORTEST,
    PrefixNode,
    PrefixTree,
    PromptCollectors,
    choices_of,
    collectors_for,
    cut,
    evenly,
    prefill,
    settle,
    shared_length,
)
from trimix_lm_eval.engine.request import Prompt, Score, ScoringRequest
from trimix_lm_eval.utils.errors import warn_once
from trimix_lm_eval.utils.windows import continuation_windows

#: So many batches of contexts are scored at a time, where their choices take a pass of their own.
#: What they share runs once for each such block.
BLOCK = 16


def is_cut(request: ScoringRequest, max_length: int) -> bool:
    """Whether a context loses its beginning to a context length of so many tokens."""
    needed = len(request.prompt.ids) + len(request.continuation) - 1  # the last one is not read
    return bool(request.continuation) and needed > max_length


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
        for part in in_passes(fuser, some):
            yield from _score_questions(fuser, part, batch_size, chosen)


def sum_scores(parts: Sequence[Score]) -> Score:
    """The score of a text that was scored in parts."""
    total = sum(part.log_likelihood for part in parts)
    return Score(total, all(part.is_greedy for part in parts), parts[0].choice)


def collect_prompts(
    fuser: Fuser,
    prompts: Sequence[Prompt],
    batch_size: int,
    request_of: Callable[[int], int] = int,
    keeping: bool = False,
) -> Iterator[tuple[int, PromptCollectors | None]]:
    """Show prompts to collectors: for choices made apart from any scoring.

    Args:
        fuser: The sources and the fusion configs.
        prompts: In any order.
        batch_size: Rows per forward pass.
        request_of: From the index of a prompt to the index that errors are to name.
        keeping: Whether the prompts will be asked for again: then their caches are kept (see
            `kept`); else they are dropped.

    Yields:
        The index of a prompt, and its collectors; None if no policy looks at it.
    """
    for node, some in PrefixTree(fuser, prompts, request_of).walk(anew=True):

        def work(
            indices: Sequence[int], _: int, node: PrefixNode = node
        ) -> list[tuple[int, PromptCollectors | None]]:
            mine = [prompts[i] for i in indices]
            collectors = collectors_for(fuser, mine)
            with blame(lambda row: request_of(indices[row])):
                found = prefill_uneven(fuser.ensemble, node, mine, collectors, keeping)
            if keeping:
                runs = [(one.batch, [mine[row] for row in one.rows]) for one in found]
                keep(fuser.ensemble, node, runs)
            return list(zip(indices, collectors, strict=True))

        for found in find_executable_batch_size(fuser.ensemble, some, batch_size, work, node.evict):
            yield from found


def prefill_uneven(
    ensemble: Ensemble,
    node: PrefixNode,
    prompts: Sequence[Prompt],
    collectors: Sequence[PromptCollectors | None],
    keeping: bool = False,
) -> list[Prefilled]:
    """Run prompts of uneven lengths from a common prefix, with little padding; wait once for all.

    Args:
        ensemble: The sources.
        node: The prefix, which is run already.
        prompts: Whole, that prefix included.
        collectors: One set per prompt; None where no policy looks at it.
        keeping: As of `prefill`.

    Returns:
        Each prompt once, those of similar lengths together.
    """
    rest = [node.rest(prompt) for prompt in prompts]
    found = []
    for rows in evenly([len(one.ids) for one in rest]):
        mine = [collectors[row] for row in rows]
        start = node.start([prompts[row] for row in rows], mine)
        with blame(rows.__getitem__):
            some = [rest[row] for row in rows]
            run = prefill(ensemble, some, mine, start, settled=False, keeping=keeping)
        found.append(Prefilled(rows, *run))
    settle(ensemble, rest, collectors)
    return found


class Question(NamedTuple):
    """A context with what is scored after it.

    Attributes:
        prompt: What policies choose by: one for all options, whatever their lengths.
        context: What is run once for all options: ``prompt``, or a context that is cut to fit or
            does not begin with it.
        options: What follows the context.
    """

    prompt: Prompt
    context: tuple[int, ...]
    options: list[Continuation]

    @property
    def run(self) -> Prompt:
        """The context as it is run; if it is not the prompt, no policy chooses by it."""
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
    """Group some requests by what policies choose by; cut contexts from the left if need be.

    Contexts that begin with what they are weighted by follow it in one tree, unless they have more
    in common with those of other questions.
    """
    shown = _shared_contexts(requests)
    cuts: dict[int, tuple[Prompt, tuple[int, ...]]] = {}
    for index in indices:
        prompt, continuation, _ = requests[index]
        too_many = max(0, len(prompt.ids) + len(continuation) - 1 - max_length)
        cuts[index] = cut(shown.get(index, prompt), max_length), prompt.ids[too_many:]
    alone = _sharing_more({i: cuts[i] for i in shown if i in cuts})
    groups: dict[Hashable, Question] = {}
    for index, (by, context) in cuts.items():
        length = len(by.ids)
        follows = by not in alone and context[:length] == by.ids
        begin, rest = (by.ids, context[length:]) if follows else (context, ())
        # Texts after the prefix token alone have nothing in common: each has a row of its own.
        named = requests[index].question
        text = (index if named is None else named) if len(context) == 1 else None
        question = groups.setdefault((by, begin, text), Question(by, begin, []))
        question.options.append(Continuation(index, rest, requests[index].continuation))
    return list(groups.values())


def _sharing_more(cuts: Mapping[int, tuple[Prompt, tuple[int, ...]]]) -> set[Prompt]:
    """What questions are weighted by whose contexts share much more with other questions'."""
    found: set[Prompt] = set()
    ordered = sorted(set(cuts.values()), key=lambda one: (one[1], one[0].ids))
    for (by, context), (other, next_one) in pairwise(ordered):
        if by != other:
            same = shared_length(context, next_one)
            found.update(p for p in (by, other) if same - len(p.ids) >= SHORTEST)
    return found


def blocks(fuser: Fuser, questions: list[Question], batch_size: int) -> Iterator[list[Question]]:
    """What to choose for before any of it is scored: all, if that takes no pass of its own.

    Otherwise a few batches, those that share a prefix together: the first answers must not wait for
    all choices, which are half of the work, nor a process that dies lose them.
    """
    apart = {q.prompt for q in questions if q.run is not q.prompt}
    if all(mine is None for mine in collectors_for(fuser, list(apart))):
        yield questions
        return
    waiting = [q for q in questions if q.prompt in apart]
    waiting.sort(key=lambda q: (q.prompt.ids, q.context))
    size = BLOCK * batch_size
    ends = [
        end
        for end in range(1, len(waiting) + 1)
        if end == len(waiting) or waiting[end].prompt != waiting[end - 1].prompt
    ]
    start = 0
    for end in ends:  # never between the options of a question
        if end - start >= size or end == len(waiting):
            yield waiting[start:end]
            start = end
    yield [q for q in questions if q.prompt not in apart]


def in_passes(fuser: Fuser, questions: list[Question]) -> list[list[Question]]:
    """The questions of a block in the order of their passes: choices are made before they are used.

    Those whose own context shows what others are weighted by first, if policies look at it.
    """
    first = [q for q in questions if q.run is q.prompt]
    rest = [q for q in questions if q.run is not q.prompt]
    looked_at = any(mine is not None for mine in collectors_for(fuser, [q.prompt for q in rest]))
    return [some for some in (first, rest) if some] if looked_at else [questions]


def chosen_apart(questions: Sequence[Question]) -> dict[Prompt, int]:
    """What policies choose by that no context of these questions is, with a request each."""
    run = {q.prompt for q in questions if q.run is q.prompt}
    found: dict[Prompt, int] = {}
    for question in questions:
        if question.prompt not in run:
            found.setdefault(question.prompt, question.options[0].request)
    return found


def _score_questions(
    fuser: Fuser, questions: Sequence[Question], batch_size: int, chosen: dict[Prompt, Choices]
) -> Iterator[Scored]:
    """Score questions; ``chosen`` has the choices that were made apart, and gets the others."""
    contexts = [question.run for question in questions]
    for node, some in PrefixTree(fuser, contexts, lambda i: questions[i].options[0].request).walk():

        def work(indices: Sequence[int], _: int, node: PrefixNode = node) -> list[Scored]:
            return _score_batch(fuser, node, [questions[i] for i in indices], chosen)

        for scores in find_executable_batch_size(
            fuser.ensemble, some, batch_size, work, node.evict
        ):
            yield from scores


def _choices_apart(
    fuser: Fuser, questions: Sequence[Question], batch_size: int
) -> dict[Prompt, Choices]:
    """The choices by prompts that are not run as contexts: those of contexts that were cut."""
    asked = chosen_apart(questions)
    prompts, first = list(asked), list(asked.values())
    if not any(mine is not None for mine in collectors_for(fuser, prompts)):
        return {prompt: choices_of(fuser, prompt, None) for prompt in prompts}
    seen = collect_prompts(fuser, prompts, batch_size, first.__getitem__)
    return {prompts[i]: choices_of(fuser, prompts[i], mine) for i, mine in seen}


def _score_batch(
    fuser: Fuser,
    node: PrefixNode,
    questions: Sequence[Question],
    chosen: dict[Prompt, Choices],
) -> list[Scored]:
    """Prefill the contexts, choose, then run what follows them.

    ``chosen`` holds the choices so far, those made apart among them.
    """
    contexts = [q.run for q in questions]
    collectors = [
        None if q.prompt in chosen else mine
        for mine, q in zip(
            collectors_for(fuser, [q.prompt for q in questions]), questions, strict=True
        )
    ]
    with blame(lambda row: questions[row].options[0].request):
        found = prefill_uneven(fuser.ensemble, node, contexts, collectors)
    for question, mine in zip(questions, collectors, strict=True):
        if question.prompt not in chosen:
            chosen[question.prompt] = choices_of(fuser, question.prompt, mine)
    options = [question.options for question in questions]
    return score_options(fuser, found, options, [chosen[q.prompt] for q in questions])
