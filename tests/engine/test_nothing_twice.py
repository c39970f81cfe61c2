"""Scoring runs no token twice, and nothing shows that it did not: counts, and the naive values."""

from __future__ import annotations

import copy
import random

import pytest
import torch

from tests.support.loaded import by_index
from tests.support.running import spied_rows
from trimix_lm_eval import TriMix
from trimix_lm_eval.engine import kept, options, prefill, scorer
from trimix_lm_eval.engine.input_batch import InputBatch
from trimix_lm_eval.engine.model_runner import Ensemble, Fuser
from trimix_lm_eval.engine.options import text_trees
from trimix_lm_eval.engine.prefill import evenly
from trimix_lm_eval.engine.request import Prompt, ScoringRequest
from trimix_lm_eval.engine.sampler import SamplingParams

POINT = {"alpha": 0.4, "beta": 0.8}


def distinct(rows) -> int:
    """Nodes of the tree of some token lists."""
    return len({tuple(ids[:end]) for ids in rows for end in range(1, len(ids) + 1)})


def tokens(shapes) -> int:
    return sum(rows * columns for rows, columns in shapes)


# ---------------------------------------------------------------- counts


def ids(generator, length):
    return tuple(generator.randrange(60, 120) for _ in range(length))


def counted(monkeypatch, model, requests, batch):
    """Tokens run over distinct ones, and forward passes."""
    with spied_rows(monkeypatch) as shapes, torch.inference_mode():
        list(scorer.score(model.fuser, requests, batch, 600))
    least = distinct([r.prompt.ids + r.continuation[:-1] for r in requests])
    return tokens(shapes) / least, len(shapes)


@pytest.mark.parametrize("policy", ["fixed", "ppl"])
def test_uneven_prompts_are_padded_little(trio, monkeypatch, policy):
    model, draw = trio("llama").weighted(policy), random.Random(1)
    block = ids(draw, 50)
    lengths = [20 + 25 * i for i in range(16)]
    draw.shuffle(lengths)
    prompts = [Prompt(block + ids(draw, length)) for length in lengths]
    requests = [ScoringRequest(prompt, (i,)) for prompt in prompts for i in (7, 8)]
    ratio, forwards = counted(monkeypatch, model, requests, 16)
    assert ratio <= 1.1
    assert forwards <= 9


@pytest.mark.parametrize("policy", ["fixed", "ppl", "gate"])
def test_options_run_what_they_have_in_common_once(trio, monkeypatch, policy):
    model, draw = trio("llama").weighted(policy), random.Random(2)
    requests = []
    for _ in range(4):
        context, common = ids(draw, 20), ids(draw, 24)
        requests += [ScoringRequest(Prompt(context), common + ids(draw, 16)) for _ in range(4)]
    ratio, forwards = counted(monkeypatch, model, requests, 4)
    assert ratio == 1.0
    assert forwards == 2, "the contexts, and all that follows them"


@pytest.mark.parametrize("policy", ["fixed", "ppl", "ent", "gate"])
def test_contexts_that_differ_in_their_end_run_once(trio, monkeypatch, policy):
    model, draw = trio("llama").weighted(policy), random.Random(3)
    requests = []
    for question in range(8):
        stem, same = ids(draw, 30), ids(draw, 6)
        for _ in range(2):
            requests.append(ScoringRequest(Prompt(stem + ids(draw, 3)), same, question))
    ratio, forwards = counted(monkeypatch, model, requests, 4)
    assert ratio == 1.0
    assert forwards == 4


def test_a_context_of_several_questions_runs_once(trio, monkeypatch):
    model, draw = trio("llama").weighted("ppl"), random.Random(4)
    some = [ids(draw, 30) for _ in range(4)]
    requests = [
        ScoringRequest(Prompt(context), ids(draw, 3), question)
        for question in range(12)
        for context in [some[question % 4]] * 2
    ]
    assert counted(monkeypatch, model, requests, 4)[0] <= 1.02


def test_what_contexts_share_with_those_of_other_questions_runs_once(trio, monkeypatch):
    """Long beginnings of the options' own, the same in all questions."""
    model, draw = trio("llama").weighted("fixed", **POINT), random.Random(5)
    begins = [ids(draw, 40) for _ in range(2)]
    requests = [
        ScoringRequest(Prompt((256, *begin, *ids(random.Random(q), 6))), (5, 6), q)
        for q in range(8)
        for begin in begins
    ]
    assert counted(monkeypatch, model, requests, 8)[0] <= 1.1


def test_a_choice_is_made_before_it_is_used(trio):
    """By a context of one token, which has none of its own, or by one that is cut."""
    three, draw = trio("llama"), random.Random(6)
    model = three.weighted("ppl")
    stem = ids(draw, 12)
    requests = [
        ScoringRequest(Prompt((256,)), (70, 71), "q"),
        ScoringRequest(Prompt((*stem, 3)), (70, 71), "q"),
        ScoringRequest(Prompt((*stem, 4)), (70, 71), "q"),
    ]
    with torch.inference_mode():
        found = by_index(scorer.score(model.fuser, requests, 2, 96))
    point = found[1].choice
    assert found[0].choice == found[2].choice == point and point.tokens == len(stem) - 1
    for i, request in enumerate(requests):
        row = [*request.prompt.ids, *request.continuation]
        fused = three.naive.fused(row, *point.weights[:2])
        nll = three.naive.nll(fused, row, len(request.prompt.ids)).sum()
        assert found[i].log_likelihood == pytest.approx(-float(nll), abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_batches_of_even_lengths(seed):
    draw = random.Random(seed)
    lengths = [draw.randint(0, 400) for _ in range(draw.randint(1, 40))]
    found = evenly(lengths)
    assert sorted(row for rows in found for row in rows) == list(range(len(lengths)))
    for rows in found:
        mine = [lengths[row] for row in rows]
        assert mine == sorted(mine, reverse=True)
        padding = len(mine) * mine[0] - sum(mine)
        assert padding <= max(prefill.PADDING, prefill.PADDING_SHARE * sum(mine))


# ---------------------------------------------------------------- trees


@pytest.mark.parametrize("seed", range(30))
def test_a_tree_has_each_token_once_and_each_sees_those_above_it(seed):
    draw = random.Random(seed)
    texts = [
        tuple(draw.randrange(3) for _ in range(draw.randint(0, 6)))
        for _ in range(draw.randint(1, 9))
    ]
    most = draw.choice([1, 5, 1000])
    trees = list(text_trees(texts, most))
    assert sorted(text for tree in trees for text in tree.texts) == list(range(len(texts)))
    for tree in trees:
        mine = [texts[text] for text in tree.texts]
        assert len(tree.ids) == distinct(mine)
        assert len(tree.ids) <= max(most, max(map(len, mine)))
        for path, text in zip(tree.paths, mine, strict=True):
            assert [tree.ids[node] for node in path] == list(text)
            for depth, node in enumerate(path):
                assert tree.depth[node] == depth
                seen = [n for n in range(node + 1) if tree.until[n] > node]
                assert seen == path[: depth + 1]


def mixture(draw):
    """Requests that share beginnings of contexts, ends of contexts and beginnings of options."""
    begins = [(256, *ids(draw, draw.randint(0, 8)))]
    for _ in range(draw.randint(0, 3)):
        begins.append((*draw.choice(begins), *ids(draw, draw.randint(1, 9))))
    requests = []
    for question in range(draw.randint(1, 6)):
        stem = (*draw.choice(begins), *ids(draw, draw.randint(0, 5)))
        commons = [ids(draw, draw.randint(0, 5)) for _ in range(2)]
        named = draw.choice([None, question, question % 2])
        for _ in range(draw.randint(1, 4)):
            end = ids(draw, draw.randint(0, 3)) if named is not None else ()
            option = (*draw.choice(commons), *ids(draw, draw.randint(0, 4))) or (draw.randrange(9),)
            context = (256,) if draw.random() < 0.1 else stem + end
            requests.append(ScoringRequest(Prompt(context), option, named))
    draw.shuffle(requests)
    return requests


def without_cache(model: TriMix) -> Fuser:
    """The same, but the first source is run whole, row by row."""
    first, *others = model.fuser.ensemble.sources
    plain = copy.copy(first)
    plain.plain, plain.shares_prefixes = True, False
    return Fuser(Ensemble([plain, *others], model.fuser.ensemble.unused), model.configs)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("policy", ["fixed", "ppl", "gate", "uncached"])
@pytest.mark.parametrize("seed", range(5))
def test_any_mixture_is_scored_as_if_alone(trio, monkeypatch, family, policy, seed):
    """Against one whole row after the other, whatever is shared and however it is batched."""
    if policy == "uncached" and family == "gemma3":
        family = "qwen2"  # its own attention over windows is not what the loaded one has
    three, draw = trio(family), random.Random(f"{family} {policy} {seed}")
    more = {"chunk_tokens": draw.choice([7, 64, 2048]), "logit_positions": draw.choice([3, 999])}
    used = "fixed" if policy == "uncached" else policy
    model = three.weighted(used, **(POINT if used == "fixed" else {}), **more)
    fuser = without_cache(model) if policy == "uncached" else model.fuser
    monkeypatch.setattr(prefill, "SHORTEST", draw.choice([1, 32]))
    monkeypatch.setattr(scorer, "SHORTEST", prefill.SHORTEST)
    monkeypatch.setattr(prefill, "PADDING", draw.choice([0, 32, 10**9]))
    monkeypatch.setattr(options, "TREE_TOKENS", draw.choice([1, 6, 512]))
    monkeypatch.setattr(options, "MOST_PREDICTIONS", draw.choice([1, 8192]))
    requests = mixture(draw)
    with torch.inference_mode():
        found = by_index(scorer.score(fuser, requests, draw.choice([1, 2, 5]), 96))
    choices = {}
    for i, (prompt, target, question) in enumerate(requests):
        row = [*prompt.ids, *target]
        score = found[i]
        point = score.choice.weights[:2]
        fused = three.naive.gated(row) if policy == "gate" else three.naive.fused(row, *point)
        nll = three.naive.nll(fused, row, len(prompt.ids))
        assert score.log_likelihood == pytest.approx(-float(nll.sum()), abs=2e-5, rel=1e-6)
        best = fused[len(prompt.ids) - 1 : -1].argmax(-1).tolist()
        assert score.is_greedy == (best == list(target))
        if policy == "ppl" and question is not None:
            assert choices.setdefault(question, score.choice.weights) == score.choice.weights


@pytest.mark.parametrize("policy", ["ppl", "gate"])
def test_order_and_batches_change_nothing(trio, policy):
    draw = random.Random(7)
    model, requests = trio("llama").weighted(policy), mixture(draw) + mixture(draw)
    with torch.inference_mode():
        usual = by_index(scorer.score(model.fuser, requests, 4, 96))
        order = list(range(len(requests)))
        draw.shuffle(order)
        again = by_index(scorer.score(model.fuser, [requests[i] for i in order], 1, 96))
    for place, i in enumerate(order):
        assert again[place].log_likelihood == pytest.approx(usual[i].log_likelihood, abs=1e-5)


# ---------------------------------------------------------------- prompts that are kept

WORDS = ("her", "one", "two", "six", "ten", "inn", "ice", "man")
SHOTS = "Q: in the inn\nA: there is rain\n\n" * 2
PROMPTS = [f"{SHOTS}Q: {word} went on {word} and to the\nA:" for word in WORDS]
PAIRS = [(prompt, f" {answer}") for prompt in PROMPTS for answer in ("x", "the inn", "the river")]


def answers(model, chosen, anew=False):
    """Scores at a point; ``anew`` forgets first what was kept."""
    points = [(chosen.weights,)]
    if anew:
        model.fuser.ensemble.kept.clear()
    scores = by_index(model.iter_loglikelihood(PAIRS, points * len(PAIRS)))
    return [scores[i].log_likelihood for i in range(len(PAIRS))]


def texts(model, chosen, anew=False):
    """Texts at a point; ``anew`` forgets first what was kept."""
    if anew:
        model.fuser.ensemble.kept.clear()
    asked = [(prompt, SamplingParams(max_new_tokens=6)) for prompt in PROMPTS]
    points = [(chosen.weights,)] * len(PROMPTS)
    return [one.text for _, one in sorted(by_index(model.iter_generate(asked, points)).items())]


@pytest.mark.parametrize("answer", [answers, texts])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_prompts_read_for_a_task_are_not_run_again(trio, monkeypatch, answer, batch):
    model = trio("llama").weighted("ppl_task", batch_size=batch, speculative=0)
    chosen = model.choose_for_task(PROMPTS)
    want = answer(model, chosen, anew=True)
    with spied_rows(monkeypatch) as shapes:
        assert model.choose_for_task(PROMPTS) == chosen
        read = tokens(shapes)
        found = answer(model, chosen)
    assert found == (want if answer is texts else pytest.approx(want, abs=1e-5))
    assert not model.fuser.ensemble.kept, "kept no longer than needed"
    if answer is texts:
        assert tokens(shapes) - read <= 6 * len(PROMPTS)
    if answer is answers:
        rows = [a.ids + b[:-1] for a, b in (model.codec.pair(*pair) for pair in PAIRS)]
        # The last token of each prompt predicts what comes next: it runs again.
        assert tokens(shapes) <= 1.1 * distinct(rows) + len(PROMPTS)


def test_only_some_of_the_prompts_are_kept_and_others_come(trio):
    model = trio("llama").weighted("ppl_task", batch_size=3)
    chosen = model.choose_for_task(PROMPTS[2:7])
    want = answers(model, chosen, anew=True)
    assert model.choose_for_task(PROMPTS[2:7]) == chosen
    assert len({ids for node in model.fuser.ensemble.kept for ids in node.rows}) == 5
    assert answers(model, chosen) == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_what_is_kept_stays_within_its_budget(trio, monkeypatch, share):
    model = trio("llama").weighted("ppl_task", batch_size=2)
    ensemble = model.fuser.ensemble
    chosen = model.choose_for_task(PROMPTS)
    whole = sum(node.nbytes for node in ensemble.kept)
    want = answers(model, chosen, anew=True)
    monkeypatch.setattr(kept, "KEPT_BYTES", int(share * whole))
    model.choose_for_task(PROMPTS)
    assert sum(node.nbytes for node in ensemble.kept) <= share * whole
    batches = {id(batch): batch for node in ensemble.kept for batch, _ in node.rows.values()}
    own = sum(cache.nbytes for batch in batches.values() for cache in batch.caches)
    assert own <= sum(node.nbytes for node in ensemble.kept)
    assert bool(ensemble.kept) == (share > 0)
    assert answers(model, chosen) == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize("refused", range(4))
@pytest.mark.parametrize("answer", [answers, texts])
def test_memory_that_runs_out_takes_what_is_kept_first(trio, monkeypatch, answer, refused):
    model = trio("llama").weighted("ppl_task", batch_size=4)
    chosen = model.choose_for_task(PROMPTS)
    want = answer(model, chosen, anew=True)
    model.choose_for_task(PROMPTS)
    run, calls = InputBatch.run, []

    def scarce(*args):
        calls.append(1)
        if len(calls) == 1 + 2 * refused:
            raise MemoryError("no room")
        return run(*args)

    monkeypatch.setattr(InputBatch, "run", scarce)
    found = answer(model, chosen)
    assert found == (want if answer is texts else pytest.approx(want, abs=1e-5))
    if refused == 0:
        assert model.fuser.ensemble.most_rows > 4, "no batch was halved"


def test_a_policy_that_reads_the_prompts_runs_them(trio):
    """What is kept shows no collector anything."""
    three = trio("llama")
    ensemble = three.weighted("ppl").fuser.ensemble
    task = three.weighted("ppl_task", batch_size=3)
    task.choose_for_task(PROMPTS)
    ensemble.kept.extend(task.fuser.ensemble.kept)
    ppl = three.weighted("ppl", batch_size=3)
    want = [score.choice for score in ppl.loglikelihood(PAIRS)]
    ppl.fuser.ensemble.kept.extend(task.fuser.ensemble.kept)
    assert [score.choice.weights for score in ppl.loglikelihood(PAIRS)] == [
        choice.weights for choice in want
    ]
    assert not ppl.fuser.ensemble.kept
