"""Log-likelihoods against the naive reference: one row, no cache, no batch, no chunk."""

import math

import pytest
import torch

from tests.conftest import FAMILIES
from tests.support.loaded import by_index
from tests.support.running import spied_rows
from trimix_lm_eval.fusion import policies
from trimix_lm_eval.fusion.config import FusionConfig
from trimix_lm_eval.fusion.weights import Weights

PAIRS = [
    ("The river in the", " other barn"),
    ("The river in the", " x"),
    ("The river in the", " lantern that they carried over there"),
    ("Question: བོད་ཡིག\nAnswer:", " ལྷ་ས།"),
    ("Question: བོད་ཡིག\nAnswer:", " the"),
    ("", "Once upon a time"),
    ("a", "b"),
    ("In winter everything in the inn is thinner, brother.\n", "And there it rains."),
]
TEXTS = ["The winter in the inn.", "བོད་སྐད་ཡིག", "x", "In the other river there is water. " * 4]
close = {"rel": 1e-5, "abs": 1e-4}


def ids_of(model, context, continuation):
    prompt, target = model.codec.pair(context, continuation)
    return list(prompt.ids), list(target)


def likelihood(fused, prompt, target):
    """Sum of log-probabilities, and whether each token is the most probable one."""
    rows = fused[len(prompt) - 1 : len(prompt) + len(target) - 1]
    log_p = rows.log_softmax(-1)
    value = sum(float(log_p[i, t]) for i, t in enumerate(target))
    return value, rows.argmax(-1).tolist() == target


def windows_of(model, text, max_length):
    """(ids, first predicted position): each token predicted once, after as much as fits."""
    ids = model.codec.encode(text)
    found = []
    for start in range(0, len(ids), max_length):
        end = min(start + max_length, len(ids))
        if start == 0:
            found.append(([model.codec.prefix_id, *ids[:end]], 1))
        else:
            found.append((ids[end - max_length - 1 : end], max_length + 1 - (end - start)))
    return found


# -------------------------------------------------------------------------------- requests


@pytest.mark.parametrize("family", FAMILIES)
def test_fixed_weights(trio, family):
    three = trio(family)
    generator = torch.Generator().manual_seed(len(family))
    for gamma in (False, True):
        alpha, beta, g = (2 * torch.rand(3, generator=generator) - 0.4).tolist()
        point = (alpha, beta, g if gamma else None)
        options = dict(zip(("alpha", "beta", "gamma"), point, strict=True))
        model = three.weighted("fixed", batch_size=3, chunk_tokens=16, **options)
        for (context, continuation), score in zip(PAIRS, model.loglikelihood(PAIRS), strict=True):
            prompt, target = ids_of(model, context, continuation)
            fused = three.naive.fused(prompt + target, *point)
            value, greedy = likelihood(fused, prompt, target)
            assert score.log_likelihood == pytest.approx(value, **close)
            assert score.is_greedy == greedy
            assert score.choice.weights == Weights(*point)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gate(trio, family):
    three = trio(family)
    model = three.weighted("gate", batch_size=4, floor=0.1)
    for (context, continuation), score in zip(PAIRS, model.loglikelihood(PAIRS), strict=True):
        prompt, target = ids_of(model, context, continuation)
        fused = three.naive.gated(prompt + target, 0.1)
        value, greedy = likelihood(fused, prompt, target)
        assert score.log_likelihood == pytest.approx(value, **close)
        assert score.is_greedy == greedy


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_the_greedy_continuation_is_told(trio, family):
    three = trio(family)
    model = three.weighted("fixed", alpha=0.3, beta=0.9)
    prompt, _ = ids_of(model, "The river", " x")
    found = three.naive.greedy(prompt, 4, 0.3, 0.9, ends=())
    other = [*found[:3], (found[3] + 1) % 250]
    requests = [((f"{i}", ""), prompt, target) for i, target in enumerate([found, other])]
    from trimix_lm_eval.engine import scorer
    from trimix_lm_eval.engine.request import Prompt, ScoringRequest

    wanted = [ScoringRequest(Prompt(tuple(p)), tuple(t)) for _, p, t in requests]
    got = by_index(scorer.score(model.fuser, wanted, 2, model.max_length))
    assert (got[0].is_greedy, got[1].is_greedy) == (True, False)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("max_length", [9, 14])
def test_a_context_that_does_not_fit_is_cut_from_the_left(trio, family, max_length):
    three = trio(family)
    model = three.weighted("fixed", alpha=0.3, beta=0.9, max_length=max_length, batch_size=2)
    pairs = [(c, t) for c, t in PAIRS if len(ids_of(model, c, t)[1]) <= max_length]
    assert any(len(ids_of(model, *p)[0]) > max_length for p in pairs)
    for (context, continuation), score in zip(pairs, model.loglikelihood(pairs), strict=True):
        prompt, target = ids_of(model, context, continuation)
        kept = (prompt + target)[-max_length - 1 :]
        prompt = kept[: -len(target)]
        value, _ = likelihood(three.naive.fused(kept[:-1], 0.3, 0.9), prompt, target)
        assert score.log_likelihood == pytest.approx(value, **close)


@pytest.mark.parametrize("options", [1, 2])
def test_the_first_answers_do_not_wait_for_all_choices(trio, monkeypatch, options):
    """Contexts that are cut, and what options have in common, are read before they are scored."""
    from trimix_lm_eval.engine import scorer

    cut = options == 1
    model = trio("llama").weighted("ppl", batch_size=2, max_length=12 if cut else None)
    words = ("her", "one", "two", "six", "ten", "inn", "ice", "man")
    ends = ("",) if cut else (" old", " new")
    pairs = [(f"{word} went on {word} and on to the{end}", " x") for word in words for end in ends]
    questions = [i // options for i in range(len(pairs))]

    def answered():
        return {i: s for i, _, s in model.iter_loglikelihood(pairs, questions=questions)}

    at_once = answered()
    monkeypatch.setattr(scorer, "BLOCK", 1)
    with spied_rows(monkeypatch) as shapes:
        found = model.iter_loglikelihood(pairs, questions=questions)
        first = next(found)
        before = len(shapes)
        rest = list(found)
        assert before <= len(shapes) / 4
    assert sorted(i for i, _, _ in [first, *rest]) == list(range(len(pairs)))
    for i, _, score in [first, *rest]:
        assert score.log_likelihood == pytest.approx(at_once[i].log_likelihood, **close)
        assert score.choice.weights == at_once[i].choice.weights


def test_a_mask_removes_implausible_tokens(trio):
    three = trio("llama")
    model = three.weighted("fixed", alpha=0.5, beta=0.5, plausibility=0.3, batch_size=8)
    removed = 0
    for (context, continuation), score in zip(PAIRS, model.loglikelihood(PAIRS), strict=True):
        prompt, target = ids_of(model, context, continuation)
        fused = three.naive.fused(prompt + target, 0.5, 0.5)
        p = three.naive.logits("large_ins", prompt + target).softmax(-1)
        fused[p <= 0.3 * p.amax(-1, keepdim=True)] = -math.inf
        value, greedy = likelihood(fused, prompt, target)
        assert score.log_likelihood == pytest.approx(value, **close)
        assert score.is_greedy == greedy
        removed += math.isinf(value)
    assert removed


# -------------------------------------------------------------------------------- rolling


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("max_length", [None, 10])
def test_rolling_with_fixed_weights_and_with_the_gate(trio, family, max_length):
    three = trio(family)
    for policy, options in (("fixed", {"alpha": 0.3, "beta": 0.9}), ("gate", {})):
        model = three.weighted(policy, batch_size=3, max_length=max_length, **options)
        for text, score in zip(TEXTS, model.loglikelihood_rolling(TEXTS), strict=True):
            value = 0.0
            for ids, first in windows_of(model, text, model.max_length):
                naive = three.naive
                fused = naive.gated(ids) if policy == "gate" else naive.fused(ids, 0.3, 0.9)
                value -= float(naive.nll(fused, ids, first).sum())
            assert score.log_likelihood == pytest.approx(value, **close)


def grid_of(three, model, text, points):
    """``[P, T]`` NLL of each token of a document under each point, window by window."""
    parts = [
        three.naive.grid(ids, first, points)
        for ids, first in windows_of(model, text, model.max_length)
    ]
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("max_length", [None, 10])
def test_rolling_by_a_grid_is_prequential(trio, family, max_length):
    three = trio(family)
    points = [Weights(1.0, 0.0), Weights(0.1, 0.9), Weights(0.5, 0.9), Weights(0.3, 0.3, 0.6)]
    grid = ";".join(p.label() for p in points)
    model = three.weighted("ppl", grid=grid, batch_size=2, max_length=max_length, chunk_tokens=7)
    for text, score in zip(TEXTS, model.loglikelihood_rolling(TEXTS), strict=True):
        nll = grid_of(three, model, text, points)
        total = 0.0
        for t in range(nll.shape[1]):
            past = [float(nll[p, :t].sum()) for p in range(len(points))]
            total += float(nll[past.index(min(past)) if t else 1, t])
        assert score.log_likelihood == pytest.approx(-total, **close)
        best = int(nll.sum(1).argmin())
        assert score.choice.weights == points[best]
        assert score.choice.tokens == nll.shape[1]
        assert score.choice.nll == pytest.approx(float(nll[best].mean()), rel=1e-5)


def test_rolling_weights_by_the_points_of_the_grid_even_if_a_prompt_would_be_refined(trio):
    three = trio("llama")
    refined = three.weighted("ppl", refine="quadratic", max_length=40)
    assert refined.loglikelihood_rolling(TEXTS) == three.weighted(
        "ppl", max_length=40
    ).loglikelihood_rolling(TEXTS)


@pytest.mark.parametrize("plausibility", [None, 0.01])
@pytest.mark.parametrize(("alpha", "beta"), [(0.1, 0.9), (0.7, 0.7), (1.0, 0.0)])
def test_a_grid_of_one_point_is_that_point(trio, alpha, beta, plausibility):
    """With the mask too: how a point was chosen does not change what a score is."""
    three = trio("llama")
    more = {"plausibility": plausibility, "batch_size": 2}
    fixed = three.weighted("fixed", alpha=alpha, beta=beta, **more)
    grid = three.weighted("ppl", grid=[(alpha, beta)], **more)

    def values(scores):
        return [score.log_likelihood for score in scores]

    assert values(grid.loglikelihood(PAIRS)) == pytest.approx(
        values(fixed.loglikelihood(PAIRS)), **close
    )
    texts = ["the", "in the inn", *TEXTS]
    assert values(grid.loglikelihood_rolling(texts)) == pytest.approx(
        values(fixed.loglikelihood_rolling(texts)), **close
    )


def test_rolling_of_nothing_and_of_many_equal_windows(trio):
    three = trio("llama")
    for policy, options in (
        ("fixed", {}),
        ("ppl", {}),
        ("ppl", {"refine": "quadratic"}),
        ("gate", {}),
    ):
        model = three.weighted(policy, max_length=8, **options)
        empty, same, twin = model.loglikelihood_rolling(["", "x" * 40, "x" * 40])
        assert empty.log_likelihood == 0.0
        assert same == twin


# -------------------------------------------------------------------------------- long


@pytest.mark.parametrize("policy", ["fixed", "gate"])
def test_a_continuation_longer_than_the_context_length(trio, policy):
    """Windows over context and continuation, as over a document; only the latter counts."""
    three, max_length = trio("llama"), 8
    model = three.weighted(policy, max_length=max_length)
    context, continuation = "ab", " in the inn is thinner, brother"
    prompt, target = ids_of(model, context, continuation)
    assert len(target) > max_length
    whole, value = prompt + target, 0.0
    for start in range(1, len(whole), max_length):
        end = min(start + max_length, len(whole))
        ids = whole[max(0, end - max_length - 1) : end]
        first = len(ids) - (end - max(start, len(prompt)))
        fused = three.naive.gated(ids) if policy == "gate" else three.naive.fused(ids, 0.1, 0.9)
        value -= float(three.naive.nll(fused, ids, first).sum())
    (score,) = model.loglikelihood([(context, continuation)])
    assert score.log_likelihood == pytest.approx(value, **close)


def test_rolling_runs_the_sources_once_for_all_configs(trio, monkeypatch):
    three = trio("llama")
    chosen = FusionConfig(policies.build("ppl"))
    fixed = FusionConfig(policies.build("fixed", alpha=0.3, beta=0.9))
    gate = FusionConfig(policies.build("gate"))
    found = []
    for configs in ([chosen], [chosen, fixed, gate]):
        model = three.many(configs, batch_size=2)
        with spied_rows(monkeypatch) as seen:
            list(model.iter_rolling(TEXTS))
        found.append(list(seen))
    assert found[0] == found[1] and found[0]
