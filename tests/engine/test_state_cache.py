"""Models with states: what they run beside the least, whatever is shared, dropped or kept."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from tests.conftest import FAMILIES, byte_tokenizer
from tests.support import families
from tests.support.loaded import by_index
from tests.support.naive import Naive
from trimix_lm_eval import TriMix
from trimix_lm_eval.engine import kept, scorer
from trimix_lm_eval.engine.request import Prompt, ScoringRequest
from trimix_lm_eval.engine.sampler import SamplingParams
from trimix_lm_eval.fusion import policies
from trimix_lm_eval.fusion.config import FusionConfig

#: Old versions of transformers have no layers with states.
state_cache = pytest.importorskip("trimix_lm_eval.engine.state_cache", exc_type=ImportError)
pytestmark = pytest.mark.skipif("qwen3_5" not in FAMILIES, reason="needs a newer transformers")


@pytest.fixture(scope="module")
def three(trio):
    """Their naive reference is exact: in fp32 it is itself 3e-4 off on some processors."""
    found = trio("qwen3_5")
    naive = Naive(found.folders, found.model.report.vocab_size, torch.float64)
    return found._replace(naive=naive)


@contextmanager
def shapes_run(model: TriMix) -> Iterator[list[tuple[int, int]]]:
    """(rows, columns) of what goes through the first source."""
    shapes: list[tuple[int, int]] = []

    def see(module, args, kwargs):
        shapes.append(tuple(kwargs["input_ids"].shape))

    body = model.fuser.ensemble.sources[0].body
    hook = body.register_forward_pre_hook(see, with_kwargs=True)
    try:
        yield shapes
    finally:
        hook.remove()


def tokens(shapes) -> int:
    return sum(rows * columns for rows, columns in shapes)


def ids(draw, length):
    return tuple(draw.randrange(60, 120) for _ in range(length))


def distinct(requests) -> int:
    """Nodes of the tree of all tokens that predict something."""
    rows = [one.prompt.ids + one.continuation[:-1] for one in requests]
    return len({row[:end] for row in rows for end in range(1, len(row) + 1)})


def uneven(draw):
    """Prompts of many lengths after one block: the states of each are taken at its own end."""
    block = ids(draw, 50)
    prompts = [Prompt(block + ids(draw, 20 + 25 * i)) for i in range(16)]
    return [ScoringRequest(prompt, (i,)) for prompt in prompts for i in (7, 8)]


def common_beginnings(draw):
    """Options, and some of the options of each, begin alike."""
    requests = []
    for _ in range(3):
        context, common, more = ids(draw, 20), ids(draw, 24), ids(draw, 20)
        requests += [ScoringRequest(Prompt(context), common + ids(draw, 18)) for _ in range(2)]
        requests += [
            ScoringRequest(Prompt(context), common + more + ids(draw, 5)) for _ in range(2)
        ]
    return requests


def contexts(draw):
    """Questions whose options differ at the end of their contexts."""
    requests = []
    for question in range(6):
        stem, same = ids(draw, 30), ids(draw, 6)
        requests += [ScoringRequest(Prompt(stem + ids(draw, 3)), same, question) for _ in range(2)]
    return requests


@pytest.mark.parametrize("chunk_tokens", [None, 24])
@pytest.mark.parametrize("make", [uneven, common_beginnings, contexts])
def test_scoring_runs_little_twice(three, make, chunk_tokens):
    draw = random.Random(1)
    requests = make(draw)
    model = three.weighted("fixed", alpha=0.4, beta=0.8, chunk_tokens=chunk_tokens)
    with shapes_run(model) as shapes, torch.inference_mode():
        found = by_index(scorer.score(model.fuser, requests, 16, 600))
    if chunk_tokens is None:
        assert tokens(shapes) <= 1.1 * distinct(requests)
    for i in range(0, len(requests), 5):
        row = [*requests[i].prompt.ids, *requests[i].continuation]
        nll = three.naive.nll(three.naive.fused(row, 0.4, 0.8), row, len(requests[i].prompt.ids))
        assert found[i].log_likelihood == pytest.approx(-float(nll.sum()), abs=1e-4)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("most", [1, 3])
def test_where_memory_runs_out_fewer_options_run_at_a_time(three, monkeypatch, batch, most):
    draw = random.Random(2)
    prompt = Prompt(ids(draw, 20))
    requests = [ScoringRequest(prompt, ids(draw, 12 + i), 0) for i in range(7)]
    requests += common_beginnings(draw)
    model = three.weighted("fixed", alpha=0.4, beta=0.8)
    with torch.inference_mode():
        want = by_index(scorer.score(model.fuser, requests, batch, 600))
    for source in model.fuser.ensemble.sources:
        monkeypatch.setattr(source.new_state_cache(1).layout, "most_branches", 1000)
    refused = []

    def refuse(module, args, kwargs):
        rows = kwargs["input_ids"].shape[0]
        if rows > most:
            refused.append(rows)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    body = model.fuser.ensemble.sources[0].body
    with body.register_forward_pre_hook(refuse, with_kwargs=True), torch.inference_mode():
        found = by_index(scorer.score(model.fuser, requests, batch, 600))
    assert 1 <= len(refused) <= 5, "the limit is remembered"
    for i, score in want.items():
        assert found[i].log_likelihood == pytest.approx(score.log_likelihood, abs=1e-4)


PROMPTS = ["The hen", "x", "There were rivers in the barn.\n"]


@pytest.mark.parametrize(("batch_size", "again"), [(1, 1), (1, 100), (3, 1), (3, 6), (3, 100)])
def test_what_rejected_drafts_cost(three, monkeypatch, batch_size, again):
    """However late a state is taken behind tokens that were accepted, the texts are the same."""
    asked = {"max_new_tokens": 24, "temperature": 1.0}
    plain = three.weighted("fixed", alpha=0.6, beta=0.2, batch_size=batch_size, speculative="off")
    want = plain.generate(PROMPTS, **asked)
    monkeypatch.setattr(state_cache, "MOST_AGAIN", again)
    model = three.weighted("fixed", alpha=0.6, beta=0.2, batch_size=batch_size, speculative=3)
    with shapes_run(model) as shapes:
        assert model.generate(PROMPTS, **asked) == want
    assert model.speculation.summary()["acceptance"] < 0.9, "some are rejected"
    steps = [columns for _, columns in shapes if columns > 1]
    # What is run again is at most so much, the tokens of one more step, and what others need.
    most = max(len(prompt.encode()) for prompt in PROMPTS) + 1
    assert max(steps) <= max(most, again + 2 * 4 * (batch_size if batch_size > 1 else 1))


@pytest.mark.parametrize("batch", [1, 3])
def test_prompts_that_are_kept_take_their_last_token_back(three, batch):
    block = "Q: in the inn\nA: there is rain\n\n" * 2
    prompts = [f"{block}Q: {word} went to the\nA:" for word in ("her", "one", "river", "ice", "m")]
    pairs = [(prompt, f" {answer}") for prompt in prompts for answer in ("x", "the inn")]
    model = three.weighted("ppl_task", batch_size=batch, speculative=0)
    chosen = model.choose_for_task(prompts)
    points = [(chosen.weights,)]
    model.fuser.ensemble.kept.clear()
    want = by_index(model.iter_loglikelihood(pairs, points * len(pairs)))
    assert model.choose_for_task(prompts) == chosen
    held = sum(node.nbytes for node in model.fuser.ensemble.kept)
    assert 0 < held <= kept.KEPT_BYTES
    with shapes_run(model) as shapes:
        found = by_index(model.iter_loglikelihood(pairs, points * len(pairs)))
    assert [found[i].log_likelihood for i in range(len(pairs))] == pytest.approx(
        [want[i].log_likelihood for i in range(len(pairs))], abs=1e-5
    )
    options = sum(len(model.codec.pair(*pair)[1]) - 1 for pair in pairs)
    assert tokens(shapes) <= len(prompts) + 1.5 * options + 8
    asked = [(prompt, SamplingParams(max_new_tokens=6)) for prompt in prompts]
    anew = by_index(model.iter_generate(asked, points * len(prompts)))
    model.choose_for_task(prompts)
    again = by_index(model.iter_generate(asked, points * len(prompts)))
    assert {i: one.text for i, one in again.items()} == {i: one.text for i, one in anew.items()}


def test_a_sweep_forks_texts_of_models_with_states(three):
    """Points that come to disagree go on from states of their own."""
    points = [(0.9, 0.1), (0.5, 0.4), (0.1, 0.9)]
    configs = [FusionConfig(policies.build("fixed", alpha=a, beta=b)) for a, b in points]
    asked = [(prompt, SamplingParams(max_new_tokens=8)) for prompt in PROMPTS]
    for size, k in ((1, 2), (3, 0)):
        model = three.many(configs, batch_size=size, speculative=k)
        found = {(i, config): one.text for i, config, one in model.iter_generate(asked)}
        for config, (alpha, beta) in enumerate(points):
            alone = three.weighted("fixed", alpha=alpha, beta=beta, speculative="off")
            texts = alone.generate(PROMPTS, max_new_tokens=8)
            assert [found[i, config] for i in range(len(PROMPTS))] == texts


@pytest.mark.parametrize("chunk_tokens", [24, 64])
def test_rows_that_wait_while_others_run(three, chunk_tokens):
    """A short text ends in the first of many passes over a long one."""
    draw = random.Random(4)
    lengths = [(9, 34), (9, 10), (5, 17)]
    requests = [ScoringRequest(Prompt(ids(draw, a)), ids(draw, b)) for a, b in lengths]
    model = three.weighted("large_ins", chunk_tokens=chunk_tokens)
    with torch.inference_mode():
        found = by_index(scorer.score(model.fuser, requests, 3, 96))
    for i, request in enumerate(requests):
        row = [*request.prompt.ids, *request.continuation]
        nll = three.naive.nll(three.naive.logits("large_ins", row), row, len(request.prompt.ids))
        assert found[i].log_likelihood == pytest.approx(-float(nll.sum()), abs=1e-4)


@pytest.mark.parametrize("name", ["nemotron_h", "zamba2"])
def test_models_whose_step_of_one_token_is_another(tmp_path, name):
    """They go on by several tokens at once, of which the last may be padding."""
    if not families.known(name):
        pytest.skip("not in this version of transformers")
    both = families.built(name, tmp_path, byte_tokenizer())
    assert all(source.never_one for source in both.model.fuser.ensemble.sources)
    draw = random.Random(5)
    requests = [ScoringRequest(Prompt(ids(draw, 7 + i)), ids(draw, 8 + i)) for i in range(3)]
    for chunk_tokens in (1, 3, 2048):
        model = both.weighted("fixed", alpha=0.4, beta=0.8, chunk_tokens=chunk_tokens)
        with torch.inference_mode():
            found = by_index(scorer.score(model.fuser, requests, 3, 96))
        for i, request in enumerate(requests):
            row = [*request.prompt.ids, *request.continuation]
            nll = both.naive.nll(both.naive.fused(row, 0.4, 0.8), row, len(request.prompt.ids))
            assert found[i].log_likelihood == pytest.approx(-float(nll.sum()), abs=2e-4)
    texts = set()
    for batch_size, k in ((1, "off"), (3, "off"), (1, 3), (3, 2)):
        how = {"alpha": 0.4, "beta": 0.8, "batch_size": batch_size, "speculative": k}
        model = both.weighted("fixed", **how)
        texts.add(tuple(model.generate(PROMPTS, max_new_tokens=8, temperature=1.0)))
    assert len(texts) == 1
