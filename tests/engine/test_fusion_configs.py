"""Many fusion configs in one pass give what each of them gives alone."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import FAMILIES
from tests.engine.test_invariants import (
    batches,
    context,
    cuts,
    property_test,
    questions,
    text,
)
from tests.support.running import spied_rows
from trimix_lm_eval.engine import scheduler
from trimix_lm_eval.engine.input_batch import InputBatch
from trimix_lm_eval.engine.model_runner import Fuser
from trimix_lm_eval.engine.sampler import SamplingParams
from trimix_lm_eval.fusion import policies
from trimix_lm_eval.fusion.config import FusionConfig
from trimix_lm_eval.fusion.logits import grid_greedy
from trimix_lm_eval.fusion.weights import PAPER_GRID
from trimix_lm_eval.utils.errors import TrimixError

close = {"rel": 1e-5, "abs": 1e-5}


def config(policy, plausibility=None, source="large_ins", **options):
    return FusionConfig(policies.build(policy, **options), plausibility, source)


GRID = [config("fixed", alpha=a, beta=b) for a, b, _ in PAPER_GRID]
CHOOSING = [config(name) for name in ("ppl", "ppl_answer", "ent")]
OTHERS = [
    *(config(name) for name in ("large_ins", "small_cpt", "small_base", "proxy_tuning", "gate")),
    config("gate", floor=0.2),
    config("ppl", refine="quadratic"),
    config("ppl", grid="0.2:0.4;0.6:0.8;0.4:0.1"),
    config("ppl", 0.1),
    config("fixed", 0.1, alpha=0.3, beta=0.5),
    config("fixed", 0.1, "small_cpt", alpha=0.3, beta=0.5),
    config("gate", 0.3),
    config("mixture", alpha=0.3, beta=0.5),
    config("mixture", 0.2),
    *(config(name) for name in ("contrastive", "packllm", "uncertainty", "safe", "core")),
]
EVERY = [*GRID, *CHOOSING, *OTHERS]


def alone(three, one, **how):
    """The fusion config in a run of its own, with the sources that it needs.

    Its requests share batches, of which `test_invariants` says that they change nothing.
    """
    return three.many([one], **{"batch_size": 8, **how})


def every(found):
    """By fusion config and request."""
    answers = {}
    for i, which, answer in found:
        assert (which, i) not in answers, "each once"
        answers[which, i] = answer
    return answers


some_configs = st.lists(st.sampled_from(EVERY), min_size=1, max_size=6)
#: Enough points for them to be scored together.
points_too = some_configs.map(lambda some: [*GRID[::7], *some])


def assert_same_weights(got, want, refined=False):
    a, b = ((w.alpha, w.beta, w.alpha if w.gamma is None else w.gamma) for w in (got, want))
    assert a == pytest.approx(b, abs=1e-2 if refined else 2e-4)


def assert_same_score(got, want, refined=False):
    near = {"rel": 1e-4, "abs": 1e-4} if refined else close
    assert got.log_likelihood == pytest.approx(want.log_likelihood, **near)
    assert got.is_greedy == want.is_greedy
    assert_same_weights(got.choice.weights, want.choice.weights, refined)
    assert got.choice.tokens == want.choice.tokens
    if want.choice.nlls is not None:
        assert got.choice.nlls == pytest.approx(want.choice.nlls, **close)


def is_refined(one):
    return bool(one.policy.options.get("refine"))


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_scores(trio, family):
    three = trio(family)

    @property_test(8)
    @given(some_configs | points_too, questions(), batches, cuts)
    def check(configs, pairs, how, cut):
        found = every(three.many(configs, max_length=cut, **how).iter_loglikelihood(pairs))
        assert len(found) == len(configs) * len(pairs)
        for which, one in enumerate(configs):
            wanted = alone(three, one, max_length=cut).loglikelihood(pairs)
            for i, want in enumerate(wanted):
                assert_same_score(found[which, i], want, is_refined(one))

    check()


@property_test(4)
@given(some_configs | points_too, batches)
def test_scores_of_questions_whose_options_differ_in_context(trio, configs, how):
    three = trio("llama")
    stem = "Q: x\nA: y\n\nQ: the trophy did not fit because "
    pairs = [(stem + "it\nA:", " was big."), (stem + "the case\nA:", " was big."), ("", " was")]
    pairs.append(("the inn " * 30, " there " * 20))  # longer than the context
    asked = ["q", "q", "q", "r"]
    found = every(three.many(configs, **how).iter_loglikelihood(pairs, questions=asked))
    for which, one in enumerate(configs):
        wanted = every(alone(three, one).iter_loglikelihood(pairs, questions=asked))
        for i in range(len(pairs)):
            assert_same_score(found[which, i], wanted[0, i], is_refined(one))


@property_test(6)
@given(some_configs | points_too, st.lists(text | st.just(""), min_size=1, max_size=4), batches)
def test_rolling_scores(trio, configs, texts, how):
    three = trio("llama")
    found = every(three.many(configs, max_length=11, **how).iter_rolling(texts))
    for which, one in enumerate(configs):
        wanted = alone(three, one, max_length=11).loglikelihood_rolling(texts)
        for i, want in enumerate(wanted):
            refined = is_refined(one)
            near = {"rel": 1e-3, "abs": 1e-3} if refined else close
            assert found[which, i].log_likelihood == pytest.approx(want.log_likelihood, **near)
            if want.choice is not None and not refined:
                assert_same_weights(found[which, i].choice.weights, want.choice.weights)


def assert_same_text(got, want, refined=False):
    assert got.text == want.text
    assert_same_weights(got.choice.weights, want.choice.weights, refined)


row = st.builds(
    SamplingParams,
    max_new_tokens=st.integers(1, 9),
    temperature=st.sampled_from([0.0, 0.0, 0.7, 3.0]),
    top_k=st.sampled_from([0, 5]),
    seed=st.integers(0, 3),
    stop=st.lists(st.sampled_from(["a", "the", "\n", "é"]), max_size=2).map(tuple),
)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_texts(trio, family):
    three = trio(family)
    # A refined point is real-valued: rounding moves it, and may move a nearly tied token.
    exact = [one for one in EVERY if not is_refined(one)]
    some = st.lists(st.sampled_from(exact), min_size=1, max_size=7)

    @property_test(10)
    @given(some, st.lists(st.tuples(context, row), min_size=1, max_size=4), batches, cuts)
    def check(configs, jobs, how, cut):
        found = every(three.many(configs, max_length=cut, **how).iter_generate(jobs))
        assert len(found) == len(configs) * len(jobs)
        for which, one in enumerate(configs):
            single = alone(three, one, max_length=cut, speculative="off")
            wanted = every(single.iter_generate(jobs))
            for i in range(len(jobs)):
                assert_same_text(found[which, i], wanted[0, i])

    check()


@property_test(6)
@given(
    st.lists(st.tuples(context, row), min_size=1, max_size=3),
    batches,
    st.integers(0, 1000),
    st.sampled_from([0.02, 0.1]),
)
def test_texts_though_memory_runs_out(trio, monkeypatch_once, jobs, how, seed, often):
    """Every now and then a pass fails; what was finished is kept, the rest is begun anew."""
    three, rolls = trio("llama"), random.Random(seed)
    configs = [*GRID[::8], *CHOOSING[:2], config("gate"), config("ppl", 0.1)]
    model = three.many(configs, **{**how, "batch_size": 5})
    run = InputBatch.run

    def refuse(self, which, start, wanted=None):
        if len(self.table.ids) > 1 and rolls.random() < often:
            raise MemoryError("none left")
        return run(self, which, start, wanted)

    with monkeypatch_once() as patch:
        patch.setattr(InputBatch, "run", refuse)
        found = every(model.iter_generate(jobs))
    for which, one in enumerate(configs):
        wanted = every(alone(three, one, speculative="off").iter_generate(jobs))
        for i in range(len(jobs)):
            assert_same_text(found[which, i], wanted[0, i])


@pytest.fixture
def monkeypatch_once():
    return pytest.MonkeyPatch.context


def test_everything_at_once(trio):
    """All fusion configs, one request of each kind."""
    three = trio("llama")
    model = three.many(EVERY, batch_size=5)
    pairs = [("Q: x\nA: y\n\nQ: the inn\nA:", option) for option in (" in", " there")]
    scores = every(model.iter_loglikelihood(pairs))
    rolling = every(model.iter_rolling(["the inn where brother winters"]))
    texts = every(model.iter_generate([(pairs[0][0], SamplingParams(6))]))
    for which, one in enumerate(EVERY):
        single = alone(three, one)
        for i, want in enumerate(single.loglikelihood(pairs)):
            assert_same_score(scores[which, i], want, is_refined(one))
        (want,) = single.loglikelihood_rolling(["the inn where brother winters"])
        assert rolling[which, 0].log_likelihood == pytest.approx(want.log_likelihood, rel=1e-4)
        assert_same_text(
            texts[which, 0],
            every(single.iter_generate([(pairs[0][0], SamplingParams(6))]))[0, 0],
            is_refined(one),
        )


# ---------------------------------------------------------------- what is saved


def test_the_sources_run_once_for_all_points(trio, monkeypatch):
    three = trio("llama")
    pairs = [("the inn " * 8 + f"{i}", option) for i in range(4) for option in (" in", " there x")]
    shapes = {}
    for name, configs in (("one", [CHOOSING[0]]), ("all", [*GRID, *CHOOSING, *OTHERS[:5]])):
        model = three.many(configs, batch_size=4)
        with spied_rows(monkeypatch) as seen:
            list(model.iter_loglikelihood(pairs))
        shapes[name] = list(seen)
    assert shapes["all"] == shapes["one"]


def test_equal_texts_are_written_once(trio, monkeypatch):
    """Ten fusion configs that cannot differ cost what one costs."""
    three, jobs = trio("llama"), [("the inn", SamplingParams(12)), ("x", SamplingParams(9))]
    tokens = []
    point = {"alpha": 0.3, "beta": 0.5}
    for configs in ([config("fixed", **point)], [config("fixed", **point) for _ in range(10)]):
        model = three.many(configs, batch_size=2, speculative="off")
        with spied_rows(monkeypatch) as seen:
            list(model.iter_generate(jobs))
        tokens.append(sum(rows * columns for rows, columns in seen))
    assert tokens[1] <= tokens[0]


def test_paths_are_followed_once_as_far_as_they_agree(trio, monkeypatch):
    """Tokens run are those of the tree of texts, and what waiting texts take to go on."""
    three, how = trio("llama"), SamplingParams(10)
    prompt = "the inn there in the barn over the river winter"
    model = three.many(GRID, batch_size=64, speculative="off")
    length = len(model.codec.prompt(prompt).ids)
    with spied_rows(monkeypatch) as seen:
        texts = every(model.iter_generate([(prompt, how)]))
    ids = {}
    jobs = [model.request(prompt, how)]
    for _, which, made in scheduler.generate(model.fuser, jobs, 64):
        ids[which] = tuple(made.token_ids)
    nodes = {path[:n] for path in ids.values() for n in range(1, min(len(path), 9) + 1)}
    assert len(set(ids.values())) > 3, "they do differ"
    assert sum(rows * columns for rows, columns in seen) <= length + len(nodes)
    assert len(texts) == 36


def test_no_more_is_held_than_by_so_many_rows_of_one_config(trio, monkeypatch):
    """Tokens of prefixes that are held once, and of each row's own, while texts are written."""
    prompts = ["the inn there in the barn over the river", "x there", "winter, the inn"]
    jobs = [(prompt, SamplingParams(12)) for prompt in prompts]
    model = trio("llama").many(GRID, batch_size=3)
    longest = max(len(model.codec.prompt(p).ids) for p in prompts) + 12
    held, rows = [], []
    run = InputBatch.run

    def spy(self, which, start, wanted=None):
        shared = self.caches[0].shared
        prefixes = shared.prefixes if shared else []
        own = 12 * len(self.prefix_lengths)
        held.append(sum(prefix[0][0].shape[1] for prefix in prefixes) + own)
        rows.append(len(self.prefix_lengths))
        return run(self, which, start, wanted)

    with monkeypatch.context() as patch:
        patch.setattr(InputBatch, "run", spy)
        found = every(model.iter_generate(jobs))
    assert len(found) == 108
    assert max(held) <= 3 * longest
    assert max(rows) > 3, "shared prompts leave room for more rows"


def test_choices_come_with_the_whole_grid(trio):
    model = trio("llama").many([CHOOSING[0]])
    score = model.loglikelihood([("the inn there", " x")])[0]
    ids = model.codec.prompt("the inn there").ids
    naive = trio("llama").naive.grid(list(ids), 1, [p[:2] for p in PAPER_GRID]).mean(dim=1)
    assert score.choice.nlls == pytest.approx(naive.tolist(), abs=1e-5)
    assert min(score.choice.nlls) == pytest.approx(score.choice.nll, abs=1e-6)


SHOTS = "Q: hen\nA: zzz\n\nQ: x\nA:"


def test_each_policy_sees_its_part_of_a_prompt_among_a_hundred_configs(trio):
    """However many choose by the same prompt, and whatever part of it each of them sees."""
    three = trio("llama")
    fine = [config("fixed", alpha=a / 10, beta=b / 10) for a in range(10) for b in range(10)]
    pairs = [(SHOTS, " yes")]
    found = every(three.many([*fine, *CHOOSING]).iter_loglikelihood(pairs))
    for which, one in enumerate(CHOOSING, start=len(fine)):
        (want,) = alone(three, one).loglikelihood(pairs)
        assert_same_score(found[which, 0], want)
    grids = [config("ppl", grid=f"0.1:{i / 100}") for i in range(100)]
    found = every(three.many([*grids, CHOOSING[1]]).iter_loglikelihood(pairs))
    for i in range(100):
        assert found[i, 0].choice.weights == (0.1, i / 100, None)
    (want,) = alone(three, CHOOSING[1]).loglikelihood(pairs)
    assert_same_score(found[100, 0], want)


def test_the_point_of_a_task_does_not_depend_on_the_other_configs(trio):
    three = trio("llama")
    contexts = [SHOTS, "Q: barn ab\nA: yes\n\nQ: ox\nA:"]
    task = config("ppl_task")
    want = alone(three, task).choose_for_task(contexts)
    assert want.tokens > 40, "the whole of both prompts"
    for others in (["ppl_answer"], ["ent", "ppl_answer"]):
        model = three.many([*map(config, others), task])
        assert model.choose_for_task(contexts, len(others)) == want


# ---------------------------------------------------------------- the mathematics


POINT_SETS = {
    "paper": [[a, b, 1 - a - b] for a, b, _ in PAPER_GRID],
    "corners too": [[a, b, 1 - a - b] for a in (0, 0.5, 1) for b in (0, 0.5, 1)],
    "two": [[0.3, 0.2, 0.5], [0.1, 0.9, 0.0]],
    "a line": [[0.3, b / 10, 0.7 - b / 10] for b in range(10)],
    "one": [[0.3, 0.2, 0.5]],
    "outside": [[a, b, 1 - a - b] for a in (-1, 0, 2) for b in (-0.5, 0, 1.5)],
    "four sources": [
        [a, b, 1 - b - c, c - a] for a in (0.1, 0.5, 1) for b in (0.1, 0.9) for c in (0, 0.4, 0.8)
    ],
}


@pytest.mark.parametrize("name", POINT_SETS)
@pytest.mark.parametrize("ties", [False, True])
def test_favourites_under_all_points(name, ties):
    generator = torch.Generator().manual_seed(3)
    points = torch.tensor(POINT_SETS[name], dtype=torch.float32)
    n, vocab = 200, 40
    base = torch.randn(n, vocab, generator=generator) * 3
    logits = [
        base + torch.randn(n, vocab, generator=generator) * s
        for s in (0.1, 1.0, 3.0, 0.5)[: points.shape[1]]
    ]
    if ties:
        logits = [x.round() for x in logits]
        points = (points * 8).round() / 8  # exact in fp32, so that equals are equal
        points[:, -1] = 1 - points[:, :-1].sum(dim=1)
    targets = torch.where(
        torch.rand(n, generator=generator) < 0.7,
        sum(logits).argmax(dim=1),
        torch.randint(vocab, (n,), generator=generator),
    )
    fused = torch.einsum("ps,snv->pnv", points.double(), torch.stack(logits).double())
    expected = fused.argmax(dim=-1) == targets
    top = fused.topk(2, dim=-1).values
    clear = torch.ones_like(expected) if ties else (top[..., 0] - top[..., 1]) > 1e-4
    got = grid_greedy(logits, targets, points)
    assert torch.equal(got[clear], expected[clear])
    assert 0.1 < expected.float().mean() < 0.95


# ---------------------------------------------------------------- shared prefixes


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_shares_prefixes(trio, family):
    """By the trial at loading: none of them falls back to copies."""
    sources = trio(family).model.fuser.ensemble.sources
    assert [(s.shares_prefixes, s.plain) for s in sources] == [(True, False)] * 4


def test_who_asks_for_an_attention_gets_it(pico, trio):
    """Sources that cannot share prefixes give the same texts, from copies."""
    from trimix_lm_eval import TriMix

    jobs = [("the inn there in the barn", SamplingParams(12)), ("x", SamplingParams(9))]
    configs = [*GRID[::5], CHOOSING[0]]
    expected = {
        k: t.text for k, t in every(trio("llama").many(configs).iter_generate(jobs)).items()
    }
    for asked in ("sdpa", "eager"):
        model = TriMix.from_pretrained(**pico("llama"), policy="ppl", attn_implementation=asked)
        ensemble = model.fuser.ensemble
        assert not ensemble.shares_prefixes
        assert {s.config._attn_implementation for s in ensemble.sources} == {asked}
        several = TriMix(
            model.settings, model.tokenizer, Fuser(ensemble, tuple(configs)), model.report
        )
        found = every(several.iter_generate(jobs))
        assert {key: text.text for key, text in found.items()} == expected


@property_test(12)
@given(st.data())
def test_rows_that_fork_and_concat_are_rows_run_alone(trio, data):
    """Any history of rows, shared prefixes or not, gives each row's own hidden states."""
    ensemble = trio("gemma3").model.fuser.ensemble
    draw = data.draw
    token = st.integers(1, 200)
    texts: list[list[int]] = []

    def fed(rows, sizes):
        """Feed random tokens to rows, padded, and note them."""
        width = max(sizes)
        ids = torch.tensor([[draw(token) for _ in range(width)] for _ in sizes])
        valid = torch.tensor([[i < n for i in range(width)] for n in sizes])
        rows.extend(ids, valid, valid)
        return [ids[r, :n].tolist() for r, n in enumerate(sizes)]

    def start():
        count = draw(st.integers(1, 2))
        rows = InputBatch.empty(ensemble, count)
        return rows, fed(rows, [draw(st.integers(1, 20)) for _ in range(count)])

    rows, texts = start()
    for _ in range(draw(st.integers(1, 6))):
        step = draw(st.sampled_from(["fork_shared", "fork", "feed", "concat", "pack"]))
        if step == "concat" and len(texts) < 5:
            other, more = start()
            if draw(st.booleans()):
                other = other.fork_shared(range(len(more)))
            rows, texts = rows.concat(other), texts + more
        elif step == "feed":
            new = fed(rows, [draw(st.integers(0, 4)) + (r == 0) for r in range(len(texts))])
            texts = [a + b for a, b in zip(texts, new, strict=True)]
        else:
            most = st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=4)
            places = draw(most)
            texts = [texts[p] for p in places]
            if step == "fork_shared":
                rows = rows.fork_shared(places)
            else:
                lengths = [len(t) for t in texts] if step == "pack" else None
                rows = rows.fork(places, lengths)
    ids = torch.full((len(texts), 1), 7)
    ones = torch.ones_like(ids, dtype=torch.bool)
    got = rows.extend(ids, ones, ones)
    for r, ids_of in enumerate(texts):
        alone = InputBatch.empty(ensemble, 1)
        whole = torch.tensor([[*ids_of, 7]])
        last = torch.zeros_like(whole, dtype=torch.bool)
        last[0, -1] = True
        want = alone.extend(whole, torch.ones_like(last), last)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a[r : r + 1], b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (4, 1)])
@pytest.mark.parametrize("n", [1, 3, 16, 17])
@pytest.mark.parametrize("room", [2**28, 2**14])
def test_attention_is_that_of_sdpa(heads, n, room, monkeypatch):
    """With prefixes of different lengths, rows that have none, and windows in the mask.

    Where there is no room for the scores, or copies, of all rows, for some of them at a time.
    """
    from types import SimpleNamespace

    from trimix_lm_eval.engine import kv_cache
    from trimix_lm_eval.engine.kv_cache import SharedPrefixes, shared_prefix_attention

    monkeypatch.setattr(kv_cache, "WORK_BYTES", room)
    torch.manual_seed(n)
    many, few = heads
    rows, own, size, width = 5, n + 3, 8, 9
    query = torch.randn(rows, many, n, size)
    key, value = torch.randn(2, rows, few, own, size)
    lengths, of = [9, 4], [0, 1, 0, None, 1]
    prefixes = [[(torch.randn(few, p, size), torch.randn(few, p, size))] for p in lengths]
    seen = torch.rand(rows, 1, n, width + own) < 0.8
    for row, which in enumerate(of):
        seen[row, :, :, 0 if which is None else lengths[which] : width] = False
    seen[..., -1] = True
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    module = SimpleNamespace(layer_idx=0, num_key_value_groups=many // few, is_causal=True)
    cache = SimpleNamespace(shared=SharedPrefixes(prefixes, of), layers=[None])
    got, _ = shared_prefix_attention(module, query, key, value, mask, trimix_shared=cache)
    for row, which in enumerate(of):
        keys, values = key[row], value[row]
        padding = width
        if which is not None:
            k, v = prefixes[which][0]
            keys, values = torch.cat([k, keys], dim=1), torch.cat([v, values], dim=1)
            padding = width - lengths[which]
        at = torch.cat([mask[row, 0, :, : width - padding], mask[row, 0, :, width:]], dim=1)
        want = torch.nn.functional.scaled_dot_product_attention(
            query[row],
            keys.repeat_interleave(many // few, dim=0),
            values.repeat_interleave(many // few, dim=0),
            attn_mask=at,
        )
        torch.testing.assert_close(got[row].transpose(0, 1), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [64, 80])
def test_attention_rounds_no_more_than_that_of_hf(kind, size):
    """In fewer bits than fp32, sharp and flat: against what the same numbers give in fp64."""
    from types import SimpleNamespace

    from trimix_lm_eval.engine.kv_cache import SharedPrefixes, shared_prefix_attention

    for sharpness in (1, 4):
        torch.manual_seed(size)
        query = (torch.randn(3, 8, 4, size) * sharpness).to(kind)
        key, value = (torch.randn(3, 2, 300, size).to(kind) for _ in range(2))
        for x in (key, value):
            x[:, :, :200] = x[0, :, :200]
        mask = torch.zeros(3, 1, 4, 300, dtype=kind)
        mask[..., 5:40] = torch.finfo(kind).min
        whole = [x.repeat_interleave(4, dim=1) for x in (key, value)]
        exact = torch.nn.functional.scaled_dot_product_attention(
            query.double(), *(x.double() for x in whole), attn_mask=mask.double()
        )
        theirs = torch.nn.functional.scaled_dot_product_attention(query, *whole, attn_mask=mask)
        prefixes = SharedPrefixes([[(key[0, :, :200], value[0, :, :200])]], [0, 0, 0])
        cache = SimpleNamespace(shared=prefixes, layers=[None])
        own = [x[:, :, 200:] for x in (key, value)]
        module = SimpleNamespace(layer_idx=0)
        ours, _ = shared_prefix_attention(module, query, *own, mask, trimix_shared=cache)
        off = [float((x.double() - exact).norm()) for x in (ours.transpose(1, 2), theirs)]
        assert ours.dtype == kind and off[0] <= 1.02 * off[1]


def test_models_that_are_there_need_no_room_and_are_not_loaded_again(pico, monkeypatch):
    """The second language of a sweep, on a machine that the first one's models have filled."""
    from trimix_lm_eval import TriMix, llm
    from trimix_lm_eval.loading import settings
    from trimix_lm_eval.loading.preflight import memory

    folders = pico("llama")
    given = {k: folders[k] for k in ("large_ins", "small_cpt", "small_base")}
    asked = settings.parse({**given, "policy": "ppl", "device": "cpu"})
    kept, loaded = {}, []
    load = llm.load_model
    monkeypatch.setattr(llm, "load_model", lambda s, *more: loaded.append(s.name) or load(s, *more))
    first = TriMix.load_many([asked], kept=kept)
    monkeypatch.setattr(memory, "free_memory", lambda devices: dict.fromkeys(devices, 1))
    with pytest.raises(TrimixError, match="free"):
        TriMix.load_many([asked])
    second = TriMix.load_many([asked], kept=kept)
    assert loaded == ["large_ins", "small_cpt", "small_base"]
    pairs = [("the inn", " there")]
    assert second.loglikelihood(pairs) == first.loglikelihood(pairs)
