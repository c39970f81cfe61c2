"""lm-eval's requests as TriMix takes them, whichever of our models asks.

An `Instance` knows its task, document and option; a `TriMix` knows texts only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from trimix_lm_eval.engine.model_runner import NotFinite
from trimix_lm_eval.fusion.policies import Policy
from trimix_lm_eval.fusion.weights import Weights
from trimix_lm_eval.harness.gen_kwargs import generation
from trimix_lm_eval.llm import Generation
from trimix_lm_eval.loading.tokenizer import seed_for
from trimix_lm_eval.utils import distributed
from trimix_lm_eval.utils.errors import TrimixError

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance


def question_of(request: Instance) -> tuple[str | None, int | None]:
    """What a request is an option of."""
    return request.task_name, request.doc_id


def jobs(requests: Sequence[Instance], tokenizer: Any, seed: int) -> list[tuple[str, Generation]]:
    """Prompts, each with how it is to be continued.

    Args:
        requests: Of `LM.generate_until`.
        tokenizer: Says what ends a text.
        seed: Of the run.

    Raises:
        TrimixError: A task's generation arguments are not all understood.
    """
    eos = tokenizer.decode([tokenizer.eos_token_id])
    seen: Counter[tuple[Any, ...]] = Counter()
    made = []
    for request in requests:
        context, kwargs = request.args
        # Repeats of one request are draws of their own; greedy ones come out equal anyway.
        key = (request.task_name, request.doc_id, request.idx)
        made.append((context, generation(kwargs, eos, seed_for(seed, *key, seen[key]))))
        seen[key] += 1
    return made


def prompts(requests: Sequence[Instance], seed: int) -> dict[str, dict[int, str]]:
    """The prompts of each task by their place in the draw, which the seed alone decides.

    Of a document whose options differ in context, the first; an empty context, with which some
    metrics ask for the answer alone, only if there is no other.
    """
    found: dict[str, dict[int, str]] = {}
    for request in sorted(requests, key=lambda r: (bool(r.args[0]), -r.idx)):
        task, doc = str(request.task_name), int(request.doc_id or 0)
        found.setdefault(task, {})[seed_for(seed, task, doc)] = request.args[0]
    return found


def drawn(
    arrived: Mapping[str, Mapping[int, str]], most: int, world: int
) -> dict[str, dict[int, str]]:
    """The first prompts of each task over all processes, the same on each of them.

    Args:
        arrived: See `prompts`; what has arrived on this process.
        most: How many of a task.
        world: Number of processes, all of which must call this.
    """
    mine = {task: dict(sorted(found.items())[:most]) for task, found in arrived.items()}
    together: dict[str, dict[int, str]] = {}
    for part in distributed.exchanged(mine, world):
        for task, found in part.items():
            together.setdefault(task, {}).update(found)
    return {t: dict(sorted(found.items())[:most]) for t, found in sorted(together.items())}


def label(policy: Policy, weights: Weights) -> str:
    """A point of a grid by its name; a continuous choice to the nearest tenth."""
    if policy.scope == "token" or policy.continuous:
        alpha, beta = round(weights.alpha, 1), round(weights.beta, 1)
        gamma = None if weights.gamma is None else round(weights.gamma, 1)
        weights = Weights(alpha, beta, None if gamma == alpha else gamma)
    return weights.label()


@contextmanager
def naming(requests: Sequence[Instance]) -> Iterator[None]:
    """Say of a `NotFinite` raised inside which document it belongs to.

    Raises:
        TrimixError: In its place.
    """
    try:
        yield
    except NotFinite as error:
        at = requests[error.at]
        where = f"Task {at.task_name}, document {at.doc_id}, option {at.idx}"
        raise TrimixError(f"{where}. {error}") from error
