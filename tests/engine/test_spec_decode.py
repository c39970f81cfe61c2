"""Drafting: the choice of how much, the account of what came of it, and rows that come and go."""

from __future__ import annotations

import functools
import itertools
import random

import pytest
import torch
from scipy.stats import chisquare

from tests.support.loaded import by_index
from trimix_lm_eval.engine import scheduler
from trimix_lm_eval.engine.input_batch import InputBatch
from trimix_lm_eval.engine.request import Prompt
from trimix_lm_eval.engine.sampler import SamplingParams
from trimix_lm_eval.engine.scheduler import generate
from trimix_lm_eval.engine.sequence import GenerationRequest, NewTokens
from trimix_lm_eval.engine.spec_decode import LENGTHS, Cost, DecodingStep, Speculation
from trimix_lm_eval.utils.errors import TrimixError

POINT = {"alpha": 0.1, "beta": 0.9}
PROMPTS = ["The hen", "x", "There were rivers in the barn.\n", "བོད་", "In the other", "zq zq", "\n"]


@functools.cache
def gained(k, stood):
    """The tokens that a row gains by so many drafts that stood."""
    return NewTokens([0] * (stood + 1), [torch.zeros(stood + 1, 3)], k, stood)


class World:
    """A machine on which passes cost what they are told to, and drafts stand by chance."""

    def __init__(self, acceptance, draft, verify, seed=0):
        self.acceptance, self.draft, self.verify = acceptance, draft, verify
        self.random = random.Random(seed)

    def seconds(self, k, rows, gains):
        passes = k + any(gain.num_accepted_tokens == k for gain in gains)
        noise = self.random.uniform(0.97, 1.03)
        drafting = passes * self.draft * noise
        return Cost(drafting, passes, self.verify(rows * (k + 1)) * noise)

    def gain(self, k):
        stood = 0
        while stood < k and self.random.random() < self.acceptance:
            stood += 1
        return gained(k, stood)

    def run(self, speculation, rounds, rows=1):
        """Seconds per token, and the lengths that were chosen, if they are not fixed."""
        total = tokens = 0.0
        chosen = []
        fixed = isinstance(speculation, int)
        for _ in range(rounds):
            k = speculation if fixed else speculation.draft_length(rows, 100)
            gains = [self.gain(k) for _ in range(rows)]
            cost = self.seconds(k, rows, gains)
            if not fixed:
                speculation.learn(k, rows, gains, cost)
            total += cost.drafting + cost.verifying
            tokens += sum(len(gain.token_ids) for gain in gains)
            chosen.append(k)
        return total / tokens, chosen


def bound(tokens):
    """A machine that reads weights: a pass costs the same for any few tokens."""
    return 1.0


def busy(tokens):
    """A machine that computes: a pass costs as much as it has tokens."""
    return float(tokens)


def stepped(tokens):
    """A matrix product that is slow for two to four rows."""
    return {1: 1.0, 2: 1.8, 3: 2.6, 4: 2.0}.get(tokens, 1.1 + tokens / 50)


@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.6, 0.85, 0.97])
@pytest.mark.parametrize("draft", [0.05, 0.2, 0.6])
@pytest.mark.parametrize("verify", [bound, busy, stepped])
@pytest.mark.parametrize("rows", [1, 6])
def test_auto_is_near_the_best_fixed_length_and_near_off(acceptance, draft, verify, rows):
    """Within 5 % of never drafting and within 10 % of the best length, its learning included."""
    rounds = 600
    fixed = {k: World(acceptance, draft, verify, seed=k).run(k, rounds, rows)[0] for k in LENGTHS}
    auto, _ = World(acceptance, draft, verify, seed=99).run(Speculation("auto"), rounds, rows)
    assert auto <= 1.05 * fixed[0]
    assert auto <= 1.1 * min(fixed.values())


def test_auto_follows_a_change():
    speculation = Speculation("auto")
    _, before = World(0.95, 0.1, bound).run(speculation, 300)
    _, after = World(0.02, 0.4, busy).run(speculation, 600)
    _, again = World(0.95, 0.1, bound).run(speculation, 900)
    assert sum(before[100:]) / 200 > 4
    assert sum(after[300:]) / 300 < 0.5
    assert sum(again[600:]) / 300 > 4


@pytest.mark.parametrize(("mode", "most", "expected"), [("off", 9, 0), (3, 9, 3), (3, 2, 2)])
def test_fixed_modes(mode, most, expected):
    assert Speculation(mode).draft_length(4, most) == expected
    assert Speculation("auto").draft_length(4, 0) == 0


def test_the_account():
    speculation = Speculation(4)
    nothing = [torch.zeros(1, 3)]
    assert speculation.summary()["acceptance"] is None
    gains = [
        NewTokens([1], nothing, 4, 0),
        NewTokens([1, 1, 1], nothing, 4, 2),
        NewTokens([1] * 5, nothing, 4, 4),
    ]
    speculation.learn(4, 3, gains, Cost(0.1, 5, 0.1))
    speculation.learn(4, 1, [NewTokens([1], nothing, 0, 0)], Cost(0.1, 5, 0.1))
    # Judged: 1 (fell at once) + 3 (two stood, one fell) + 4; 6 of these 8 stood.
    assert speculation.summary() == {
        "mode": 4,
        "rounds": 2,
        "draft_length": 3.0,
        "acceptance": 0.75,
        "tokens_per_round": 2.5,
    }


# ---------------------------------------------------------------- what runs


def test_what_a_text_does_not_keep_is_not_counted(trio):
    model = trio("llama").weighted("fixed", alpha=0.2, beta=0.9, batch_size=4, speculative=6)
    texts = model.generate(["in the inn", "her", "there"], max_new_tokens=30, stop=["e", "n"])
    stats = model.speculation.stats
    kept = sum(len(model.codec.encode(text, False)) for text in texts)
    # Of each text the first token comes from its prompt; the token that ends it is cut off.
    assert len(texts) + stats.num_sequences + stats.num_accepted_tokens <= kept + len(texts) * 2


@pytest.fixture
def passes(monkeypatch):
    """(source, rows, valid tokens) of every forward pass."""
    seen = []
    run = InputBatch.run

    def spy(self, which, start, wanted=None):
        valid = self.table.valid[:, start:]
        seen.append((which, len(valid), int(valid.sum())))
        return run(self, which, start, wanted)

    monkeypatch.setattr(InputBatch, "run", spy)
    return seen


def test_drafts_are_judged_in_one_pass_and_prompts_run_once(trio, passes):
    three = trio("llama")
    model = three.weighted("fixed", speculative=4, **POINT)
    (prompt,) = PROMPTS[:1]
    model.generate([prompt], max_new_tokens=24)
    summary = model.speculation.summary()
    # beta = 0.9 = 1 - alpha: small_base has no part in it.
    large, small = ([p for p in passes if p[0] == s] for s in (0, 1))
    assert len(large) == 1 + summary["rounds"], "the prompt, then one pass a round"
    assert large[0][2] == len(model.codec.prompt(prompt).ids)
    assert summary["rounds"] < 23 and summary["acceptance"] > 0.3
    assert all(tokens == 1 for _, _, tokens in small[1:]), "drafts come one by one"


def test_a_free_seat_is_taken(trio, passes):
    """Twelve rows of very different lengths, four seats: nobody waits for the slowest."""
    lengths = [1, 30, 2, 3, 25, 1, 2, 8, 4, 20, 3, 2]
    jobs = [(PROMPTS[i % 7], SamplingParams(max_new_tokens=n)) for i, n in enumerate(lengths)]
    three = trio("llama")
    alone = three.weighted("fixed", speculative="off", **POINT)
    expected = {i: by_index(alone.iter_generate([job]))[0].text for i, job in enumerate(jobs)}
    for speculative in ("off", 3):
        model = three.weighted("fixed", batch_size=4, speculative=speculative, **POINT)
        passes.clear()
        found = by_index(model.iter_generate(jobs))
        assert {i: text.text for i, text in found.items()} == expected
        assert max(rows for _, rows, _ in passes) == 4
        if speculative == "off":
            # Waiting for the slowest of each four would take 30 + 25 + 20 rounds.
            assert model.speculation.summary()["rounds"] < 45


def test_texts_of_one_token_fill_the_seats_every_time(trio, passes):
    """Not one by one once the first of them have ended."""
    model = trio("llama").weighted("fixed", batch_size=3, **POINT)
    model.generate(PROMPTS, max_new_tokens=1)
    assert [rows for which, rows, _ in passes if which == 0] == [3, 3, 1]


@pytest.mark.parametrize("policy", ["fixed", "gate"])
@pytest.mark.parametrize("waste", [(1.0, 0), (100.0, 10_000)])
def test_holes_change_nothing(trio, monkeypatch, policy, waste):
    """Caches packed after every round, or never."""
    three, options = trio("gemma3"), POINT if policy == "fixed" else {}
    expected = three.weighted(policy, speculative="off", **options).generate(
        PROMPTS, max_new_tokens=20
    )
    monkeypatch.setattr(scheduler, "_MAX_WASTE", waste[0])
    monkeypatch.setattr(scheduler, "_SLACK_SLOTS", waste[1])
    model = three.weighted(policy, batch_size=3, speculative=3, **options)
    assert model.generate(PROMPTS, max_new_tokens=20) == expected


@pytest.mark.parametrize("where", ["round", "start"])
def test_out_of_memory_in_flight_starts_rows_anew(trio, monkeypatch, where):
    three = trio("llama")
    expected = three.weighted("ppl", speculative="off").generate(PROMPTS, max_new_tokens=15)
    model = three.weighted("ppl", batch_size=5, speculative=2)
    count = itertools.count()
    play, run = DecodingStep.run, InputBatch.run

    def failing(self):
        if next(count) % 4 == 3 and len(self.sequences) > 2:
            raise MemoryError("full")
        return play(self)

    def failing_run(self, which, start, wanted=None):
        if start == 0 and which == 1 and self.table.ids.shape[0] > 2:
            raise MemoryError("full")
        return run(self, which, start, wanted)

    if where == "round":
        monkeypatch.setattr(DecodingStep, "run", failing)
    else:
        monkeypatch.setattr(InputBatch, "run", failing_run)
    seen = [i for i, _, _ in model.iter_generate([(p, SamplingParams(15)) for p in PROMPTS])]
    assert sorted(seen) == list(range(len(PROMPTS))), "each exactly once"
    assert model.generate(PROMPTS, max_new_tokens=15) == expected


def test_no_memory_for_one_row_is_an_error_with_a_remedy(trio, monkeypatch):
    def full(self):
        raise MemoryError("full")

    monkeypatch.setattr(DecodingStep, "run", full)
    with pytest.raises(TrimixError, match="large_quantization"):
        trio("llama").weighted("fixed", batch_size=2, **POINT).generate(
            ["x", "y"], max_new_tokens=9
        )


def test_a_bad_number_names_its_row(trio, monkeypatch):
    """NaN behind a rejected draft is nobody's matter; anywhere else it names the document."""
    three = trio("llama")
    model = three.weighted("fixed", batch_size=3, speculative=3, **POINT)
    source = model.fuser.ensemble.sources[0]
    run = source.forward

    def forward(table, start, cache, wanted):
        out = run(table, start, cache, wanted)
        if start:
            out = out.clone()
            out.unflatten(0, (table.ids.shape[0], -1))[1, 0] = torch.nan
        return out

    monkeypatch.setattr(source, "forward", forward)
    prompts = [Prompt(*model.codec.prompt(p)) for p in PROMPTS[:3]]
    how = SamplingParams(9)
    jobs = [GenerationRequest(p, how, (frozenset(),), lambda ids: False) for p in prompts]
    with torch.inference_mode(), pytest.raises(TrimixError) as caught:
        list(generate(model.fuser, jobs, 3, model.speculation))
    order = sorted(range(3), key=lambda i: -len(prompts[i].ids))
    assert caught.value.at == order[1]


# ---------------------------------------------------------------- sampling


def test_drafted_tokens_follow_the_joint_distribution(trio):
    """Chi-square over 900 seeds, against the naive product of conditional probabilities."""
    three = trio("llama")
    model = three.weighted("fixed", batch_size=60, speculative=2, **POINT)
    prompt, seeds, temperature = "The hen", 900, 1.2
    ids = list(model.codec.prompt(prompt).ids)

    def conditional(context):
        logits = three.naive.fused(context, **POINT)[-1] / temperature
        best = logits.topk(2)
        return dict(zip(best.indices.tolist(), best.values.softmax(-1).tolist(), strict=True))

    expected = {
        (a, b, c): p * q * r
        for a, p in conditional(ids).items()
        for b, q in conditional([*ids, a]).items()
        for c, r in conditional([*ids, a, b]).items()
    }
    asked = Prompt(*model.codec.prompt(prompt))
    hows = [SamplingParams(3, (), temperature, 2, 1.0, seed) for seed in range(seeds)]
    jobs = [GenerationRequest(asked, how, (frozenset(),), lambda ids: False) for how in hows]
    with torch.inference_mode():
        found = [
            tuple(g.token_ids) for _, _, g in generate(model.fuser, jobs, 60, model.speculation)
        ]
    assert model.speculation.summary()["acceptance"] > 0.3
    counts = [found.count(triple) for triple in expected]
    assert sum(counts) == seeds
    assert chisquare(counts, [seeds * p for p in expected.values()]).pvalue > 0.01


def test_results_tell_of_it(pico):
    from tests.support.running import instances, model_args
    from trimix_lm_eval.harness.lm import TriMixLM

    lm = TriMixLM(**model_args(pico("llama"), policy="fixed", speculative=3, batch_size=2))
    asked = [(p, {"until": [], "max_gen_toks": 12}) for p in PROMPTS]
    lm.generate_until(instances("generate_until", asked), disable_tqdm=True)
    info = lm.get_model_info()["trimix"]
    assert info["runtime"]["cuda_graphs"] == {"captured": 0, "reason": "not on a GPU"}
    verdicts = info["runtime"]["sources"]
    assert verdicts.keys() == info["sources"].keys()
    assert all(one["memory"] == "keys" and one["drafts"] for one in verdicts.values())
    told = info["speculation"]
    assert told["mode"] == 3 and told["rounds"] > 3 and 0 < told["acceptance"] <= 1
    assert 0 < told["draft_length"] <= 3
