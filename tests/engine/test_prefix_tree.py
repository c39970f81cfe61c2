"""What prompts have in common runs once, and nothing shows that it did."""

from __future__ import annotations

import functools
import gc
import random
import weakref
from collections import Counter

import pytest
import torch

from tests.support.running import spied_rows
from trimix_lm_eval.engine import prefill
from trimix_lm_eval.engine.input_batch import InputBatch
from trimix_lm_eval.engine.model_runner import NotFinite
from trimix_lm_eval.engine.prefill import PrefixNode, PrefixTree
from trimix_lm_eval.engine.request import Prompt
from trimix_lm_eval.fusion.config import FusionConfig
from trimix_lm_eval.fusion.policies import build
from trimix_lm_eval.utils.errors import TrimixError

FAMILIES = ("llama", "gemma3")
POLICIES = {
    "fixed": {"alpha": 0.4, "beta": 0.8},
    "ppl": {},
    "refined": {"refine": "quadratic"},
    "ppl_answer": {},
    "ent": {},
    "gate": {"floor": 0.05},
}
SHOTS = "".join(f"Q: {q}\nA: {a}\n\n" for q, a in (("in", "x"), ("the", "t"), ("é", "བོད")))
OTHER = "Say it: winter\nSo: inn\n\nSay it: "
PAIRS = [
    *((f"{SHOTS}Q: {q}\nA:", f" {a}") for q in ("her", "here", "there") for a in ("x", "the inn")),
    *((f"{OTHER}{q}\nSo:", " it") for q in ("river", "rain")),
    (SHOTS, "Q:"),
    ("Q:", " in"),
    ("a text of its own", " the"),
]


@pytest.fixture
def everything_shared(monkeypatch):
    monkeypatch.setattr(prefill, "SHORTEST", 1)
    monkeypatch.setattr(prefill, "SHARE", 0.0)


@pytest.fixture(scope="module")
def with_room(trio):
    """``with_room(policy)``: scores and texts of `PAIRS` where memory is no matter."""

    @functools.cache
    def get(policy):
        model = trio("llama").weighted(policy, batch_size=4, **POLICIES[policy])
        with pytest.MonkeyPatch.context() as patch:
            shared(patch, True)
            texts = model.generate([context for context, _ in PAIRS], max_new_tokens=6)
            return model.loglikelihood(PAIRS), texts

    return get


def shared(monkeypatch, on: bool):
    monkeypatch.setattr(prefill, "SHORTEST", 1 if on else 10**9)
    monkeypatch.setattr(prefill, "SHARE", 0.0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("cut", [None, 40])
def test_scores_are_those_of_prompts_run_alone(trio, monkeypatch, family, policy, cut):
    options = {"max_length": cut, "chunk_tokens": 13, "logit_positions": 5, **POLICIES[policy]}
    name = "ppl" if policy == "refined" else policy
    model = trio(family).weighted(name, batch_size=3, **options)
    shared(monkeypatch, False)
    alone = model.loglikelihood(PAIRS)
    shared(monkeypatch, True)
    # Between the points of a grid, rounding moves the choice where the valley is flat.
    near = {"abs": 1e-4 if policy == "refined" else 2e-5}
    for mine, theirs in zip(model.loglikelihood(PAIRS), alone, strict=True):
        assert mine.log_likelihood == pytest.approx(theirs.log_likelihood, **near)
        assert mine.is_greedy == theirs.is_greedy
        assert mine.choice.weights[:2] == pytest.approx(theirs.choice.weights[:2], **near)
        assert mine.choice.tokens == theirs.choice.tokens
        if theirs.choice.nll is not None:
            assert mine.choice.nll == pytest.approx(theirs.choice.nll, abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", ["fixed", "ppl", "gate"])
def test_texts_are_those_of_prompts_run_alone(trio, monkeypatch, family, policy):
    model = trio(family).weighted(policy, batch_size=4, **POLICIES[policy])
    contexts = [context for context, _ in PAIRS]
    shared(monkeypatch, False)
    alone = model.generate(contexts, max_new_tokens=8)
    shared(monkeypatch, True)
    assert model.generate(contexts, max_new_tokens=8) == alone


def test_a_task_point_is_that_of_prompts_run_alone(trio, monkeypatch):
    model = trio("llama").weighted("ppl_task", batch_size=3)
    shared(monkeypatch, False)
    alone = model.choose_for_task([context for context, _ in PAIRS])
    shared(monkeypatch, True)
    mine = model.choose_for_task([context for context, _ in PAIRS])
    assert mine.weights == alone.weights
    assert mine.nll == pytest.approx(alone.nll, abs=1e-6)


def test_a_shared_token_runs_once(trio, monkeypatch):
    model = trio("llama").weighted("ppl", batch_size=8)
    pairs = [(f"{SHOTS}Q: {q}\nA:", " x") for q in ("her", "one", "two", "six", "ten")]

    def cost() -> int:
        with spied_rows(monkeypatch) as shapes:
            model.loglikelihood(pairs)
        return sum(rows * columns for rows, columns in shapes)

    shared(monkeypatch, False)
    alone = cost()
    shared(monkeypatch, True)
    lengths = [len(model.codec.pair(*pair)[0].ids) for pair in pairs]
    shared_ids = len(model.codec.encode(f"{SHOTS}Q: "))
    assert alone >= sum(lengths)
    assert cost() <= alone - 4 * (shared_ids - 2)


def test_a_long_beginning_is_found_below_a_short_one(trio, monkeypatch):
    # Two of the passages begin with the same words, which are not worth a segment of their own.
    monkeypatch.setattr(prefill, "SHORTEST", 8)
    model = trio("llama").weighted("fixed", alpha=0.4, beta=0.8)
    passages = ["The inn is here. " * 3, "The rain, the rain! " * 3, "A tower, or two. " * 3]
    pairs = [(f"{p}Q: {q}\nA:", " x") for p in passages for q in ("her", "one", "two", "six")]
    with spied_rows(monkeypatch) as shapes:
        model.loglikelihood(pairs)
    prompts = [model.codec.pair(*pair)[0].ids for pair in pairs]
    distinct = len({ids[:end] for ids in prompts for end in range(1, len(ids) + 1)})
    assert sum(rows * columns for rows, columns in shapes) <= 1.2 * distinct


def test_what_options_have_in_shared_ids_is_read_once(trio, monkeypatch):
    # Options that differ in context: the policy reads what all of them begin with.
    monkeypatch.setattr(prefill, "SHORTEST", 8)
    model = trio("llama").weighted("ppl", batch_size=4)
    shots = "Q: in\nA: x\n\n" * 3
    texts = [f"{shots}{n} went to the" for n in ("he", "she", "it", "one", "two", "six")]
    pairs = [(text + option, " inn") for text in texts for option in (" old", " new")]
    with spied_rows(monkeypatch) as shapes:
        list(model.iter_loglikelihood(pairs, questions=[i // 2 for i in range(len(pairs))]))
    prompts = [model.codec.pair(*pair)[0].ids for pair in pairs]
    distinct = len({ids[:end] for ids in prompts for end in range(1, len(ids) + 1)})
    assert sum(rows * columns for rows, columns in shapes) <= 2.2 * distinct


def test_only_what_is_above_is_held(trio, monkeypatch, everything_shared):
    """When a segment is run, its siblings before it are gone."""
    fuser = trio("llama").weighted("ppl").fuser
    prompts = [Prompt((1, first, 5, 5, 5, last)) for first in (2, 3, 4) for last in (6, 7, 8)]
    alive: weakref.WeakSet[PrefixNode] = weakref.WeakSet()
    extend = PrefixTree.extend

    def watching(self, node, index, length):
        gc.collect()
        path, one = set(), node
        while one is not None:
            path.add(id(one))
            one = one.parent
        assert {id(other) for other in alive} <= path
        made = extend(self, node, index, length)
        alive.add(made)
        return made

    monkeypatch.setattr(PrefixTree, "extend", watching)
    seen = 0
    walking = PrefixTree(fuser, prompts).walk()
    while (group := next(walking, None)) is not None:
        seen += len(group[1])
        del group
    assert seen == len(prompts)


@pytest.mark.parametrize("seed", range(40))
def test_the_walk_comes_by_every_prompt_once(trio, everything_shared, seed):
    generator = random.Random(seed)
    prompts = []
    for _ in range(generator.randint(1, 14)):
        ids = tuple(generator.randrange(3) for _ in range(generator.randint(1, 12)))
        mask = tuple(generator.random() < 0.8 for _ in ids) if generator.random() < 0.3 else None
        prompts.append(Prompt(ids, mask))
    fuser = trio("llama").many([FusionConfig(build(name)) for name in ("ppl", "ppl_answer")]).fuser
    seen: Counter[int] = Counter()
    for node, some in PrefixTree(fuser, prompts).walk():
        seen.update(some)
        begins = {prompts[i].ids[: node.length] for i in some}
        assert len(begins) == 1
        assert all(len(prompts[i].ids) > node.length for i in some)
        if node.length:
            assert node.batch.table.ids[0].tolist() == list(begins.pop())
            everything, answers = node.collectors.collectors.values()
            assert everything.count == node.length
            mask = prompts[some[0]].prompt_mask or (True,) * (node.length + 1)
            assert answers.count == sum(mask[1 : node.length + 1])
    assert seen == Counter(range(len(prompts)))


def test_short_prefixes_are_not_worth_it(trio):
    fuser = trio("llama").weighted("fixed").fuser
    shared_ids = tuple(range(prefill.SHORTEST + 1))
    some = [Prompt((*shared_ids[1:], i, 5)) for i in range(5)]
    assert [node.length for node, _ in PrefixTree(fuser, some).walk()] == [0]
    some = [Prompt((*shared_ids, i, 5)) for i in range(5)]
    assert [node.length for node, _ in PrefixTree(fuser, some).walk()] == [prefill.SHORTEST]
    # A quarter of the tokens has to be saved.
    some = [Prompt((*shared_ids, *[40 + i] * 200)) for i in range(2)]
    assert [node.length for node, _ in PrefixTree(fuser, some).walk()] == [0]


def test_an_error_in_a_shared_prefix_names_a_request(trio, monkeypatch, everything_shared):
    model = trio("llama").weighted("ppl", batch_size=4)
    head = model.fuser.ensemble.sources[0]

    def broken(hidden):
        return torch.full((len(hidden), head.vocab_size), float("nan"))

    monkeypatch.setattr(head, "compute_logits", broken)
    with pytest.raises(NotFinite, match="Request 1: "):
        model.loglikelihood([("z", " y"), (f"{SHOTS}a", " x"), (f"{SHOTS}b", " x")])


class Scarce:
    """Memory that runs out by chance, more easily for more rows; one that shares nothing fits."""

    def __init__(self, monkeypatch, seed: int, most: float = 0.12) -> None:
        self.random, self.most, self.refused = random.Random(seed), most, 0
        run = InputBatch.run

        def scarce(rows, which, start, wanted=None):
            single, shares = len(rows.table.ids) == 1, rows.table.shared > 0
            chance = self.most * (1.0 if not single else 0.4 if shares else 0.0)
            if self.refused < 60 and self.random.random() < chance:
                self.refused += 1
                raise MemoryError("no room")
            return run(rows, which, start, wanted)

        monkeypatch.setattr(InputBatch, "run", scarce)


@pytest.mark.parametrize("policy", ["fixed", "ppl", "gate"])
@pytest.mark.parametrize("budget", [0, 2_000, 20_000, 2**30])
def test_a_budget_changes_nothing_but_the_time(
    trio, monkeypatch, everything_shared, with_room, policy, budget
):
    model = trio("llama").weighted(policy, batch_size=3, **POLICIES[policy])
    contexts = [context for context, _ in PAIRS]
    alone, texts = with_room(policy)
    monkeypatch.setattr(prefill, "HELD_BYTES", budget)
    held = []
    init = PrefixNode.__init__
    monkeypatch.setattr(
        PrefixNode, "__init__", lambda self, *args: (init(self, *args), held.append(self.held))[0]
    )
    for mine, theirs in zip(model.loglikelihood(PAIRS), alone, strict=True):
        assert mine.log_likelihood == pytest.approx(theirs.log_likelihood, abs=2e-5)
        assert mine.choice.weights == theirs.choice.weights
    assert model.generate(contexts, max_new_tokens=6) == texts
    assert max(held) * model.fuser.ensemble.token_bytes <= budget
    assert max(held) > 0 or budget < 2**30


@pytest.mark.parametrize("policy", ["fixed", "ppl", "gate"])
@pytest.mark.parametrize("seed", range(6))
def test_scarce_memory_changes_nothing_but_the_time(
    trio, monkeypatch, everything_shared, with_room, policy, seed
):
    """Segments are evicted and batches halved at random places; every result comes once."""
    model = trio("llama").weighted(policy, batch_size=4, speculative=2, **POLICIES[policy])
    contexts = [context for context, _ in PAIRS]
    alone, texts = with_room(policy)
    scarce = Scarce(monkeypatch, seed)
    for _ in range(40):
        scarce.refused = 0
        model.fuser.ensemble.most_rows = 4
        try:
            found = model.loglikelihood(PAIRS)
            made = model.generate(contexts, max_new_tokens=6)
        except TrimixError:  # a batch of one was refused with nothing to evict
            scarce.most *= 0.8
            continue
        break
    assert scarce.refused > 0
    for mine, theirs in zip(found, alone, strict=True):
        assert mine.log_likelihood == pytest.approx(theirs.log_likelihood, abs=2e-5)
        assert mine.choice.weights == theirs.choice.weights
    assert made == texts


def test_no_memory_for_a_shared_prefix_runs_prompts_whole(trio, monkeypatch, everything_shared):
    model = trio("llama").weighted("ppl", batch_size=4)
    pairs = [(f"{SHOTS}a", " x"), (f"{SHOTS}b", " x")]
    expected = model.loglikelihood(pairs)
    calls = []

    def full(*_):
        calls.append(1)
        raise MemoryError("no room")

    monkeypatch.setattr(prefill, "prefill", full)
    found = model.loglikelihood(pairs)
    assert calls
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.log_likelihood == pytest.approx(theirs.log_likelihood, abs=2e-5)


def test_no_memory_for_one_prompt_is_an_error_with_a_remedy(trio, monkeypatch, everything_shared):
    model = trio("llama").weighted("fixed")

    def full(*_):
        raise MemoryError("no room")

    monkeypatch.setattr(InputBatch, "run", full)
    with pytest.raises(TrimixError, match="batch of one: no room\n  -> lower max_length"):
        model.loglikelihood([(f"{SHOTS}a", " x"), (f"{SHOTS}b", " x")])
