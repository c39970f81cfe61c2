"""What is in memory for a while only: within the budget, however long texts and vocabularies are.

Invariant 4, in bytes: with the budgets set to a few MiB, so that small models fill them.
"""

from __future__ import annotations

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.support.live_bytes import LiveBytes
from trimix_lm_eval.engine import input_batch, kv_cache, model_runner, probe, sampler
from trimix_lm_eval.engine.model_runner import Ensemble, Fuser
from trimix_lm_eval.engine.prefill import collectors_for, prefill
from trimix_lm_eval.engine.request import Prompt, ScoringRequest
from trimix_lm_eval.engine.rolling import score_rolling
from trimix_lm_eval.engine.sampler import SamplingParams
from trimix_lm_eval.engine.scheduler import generate
from trimix_lm_eval.engine.scorer import score
from trimix_lm_eval.engine.sequence import GenerationRequest
from trimix_lm_eval.engine.spec_decode import Speculation
from trimix_lm_eval.fusion import logits, policies
from trimix_lm_eval.fusion.config import FusionConfig
from trimix_lm_eval.fusion.policies.entropy import EntropyCollector
from trimix_lm_eval.fusion.weights import source_vector
from trimix_lm_eval.utils.windows import rolling_windows

VOCAB, MIB = 6_000, 2**20
LOGITS, WORK = 2 * MIB, 2 * MIB
NAMES = ("large_ins", "small_cpt", "small_base")
GRID = [(a, b) for a in (0.1, 0.5, 0.9) for b in (0.2, 0.4, 1.0)]
FIXED, PPL, GATE = ("fixed", {"alpha": 0.4, "beta": 0.8}), ("ppl", {"grid": GRID}), ("gate", {})


@pytest.fixture(scope="module")
def sources():
    """Three models that are all vocabulary."""
    made = []
    for seed, name in enumerate(NAMES):
        torch.manual_seed(seed)
        shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
        config = LlamaConfig(vocab_size=VOCAB, max_position_embeddings=4096, **shape, **heads)
        made.append(probe.load_runner(name, LlamaForCausalLM(config).eval(), VOCAB))
    return made


@pytest.fixture
def fuser_of(sources, monkeypatch):
    monkeypatch.setattr(model_runner, "LOGIT_BYTES", LOGITS)
    monkeypatch.setattr(input_batch, "MASK_ENTRIES", 2**15)
    monkeypatch.setattr(logits, "_LEAST_WORK", MIB)
    for module in (logits, sampler, kv_cache):
        monkeypatch.setattr(module, "WORK_BYTES", WORK)

    def make(*asked, plausibility=None):
        ensemble = Ensemble(sources)
        ensemble.chunk_tokens = 256
        configs = [FusionConfig(policies.build(n, **how), plausibility) for n, how in asked]
        return Fuser(ensemble, configs)

    return make


def tokens(count, start=0):
    return tuple(((torch.arange(count) * 7919 + start * 131) % VOCAB).tolist())


def scored(fuser):
    pairs = [(context, more) for context in range(3) for more in (1, 40, 12)]
    asked = [ScoringRequest(Prompt(tokens(150, c)), tokens(m, c + 5)) for c, m in pairs]
    return list(score(fuser, asked, 4, 2048))


def rolled(fuser):
    documents = [rolling_windows(tokens(170, start), 0, 80) for start in range(2)]
    return list(score_rolling(fuser, documents, 4))


def written(fuser, **how):
    jobs = [
        GenerationRequest(
            Prompt(tokens(30, start)),
            SamplingParams(max_new_tokens=4, seed=start, **how),
            (frozenset(),) * len(fuser.configs),
        )
        for start in range(24)
    ]
    return list(generate(fuser, jobs, 24, Speculation(1)))


RUNS = {
    "scores of a sweep": (scored, [FIXED, PPL, GATE], {}),
    "scores, masked": (scored, [FIXED, PPL], {"plausibility": 0.1}),
    "whole texts": (rolled, [PPL, FIXED], {}),
    "whole texts, masked": (rolled, [PPL], {"plausibility": 0.1}),
    "greedy texts": (written, [GATE], {}),
    "sampled texts": (lambda f: written(f, temperature=1.0, top_p=0.9), [FIXED], {}),
}


@pytest.mark.parametrize("run", RUNS)
def test_a_run_stays_within_the_budget(fuser_of, run):
    act, asked, more = RUNS[run]
    fuser = fuser_of(*asked, **more)
    assert fuser.ensemble.logit_positions * VOCAB * 4 * 6 > LOGITS * 0.9, "it is made use of"
    with torch.inference_mode(), LiveBytes() as seen:
        act(fuser)
    # Caches, hidden states and masks are a MiB here.
    assert seen.largest[0] <= LOGITS, seen.largest
    assert LOGITS / 2 < seen.peak <= LOGITS + WORK + MIB


def test_sources_that_are_run_row_by_row_do(fuser_of, monkeypatch):
    """The logits of their rows are made from hidden states, too."""
    fuser = fuser_of(FIXED)
    for source in fuser.ensemble.sources:
        monkeypatch.setattr(source, "plain", True)
    with torch.inference_mode(), LiveBytes() as seen:
        scored(fuser)
    assert seen.largest[0] <= LOGITS, seen.largest
    assert seen.peak <= LOGITS + WORK + MIB


@pytest.mark.parametrize("axes", [(4, 4), (60, 60), (90, 3), (40, None)])
def test_the_blocks_of_a_grid_are_within_the_budget(monkeypatch, axes):
    """Whatever the points: few, many, irregular, or on a diagonal, of which most pairs are none."""
    monkeypatch.setattr(logits, "WORK_BYTES", MIB)
    monkeypatch.setattr(logits, "_LEAST_WORK", MIB // 2)
    torch.manual_seed(0)
    first = torch.rand(axes[0]).tolist()
    second = torch.rand(axes[1]).tolist() if axes[1] else None
    pairs = [(a, b) for a in first for b in second] if second else [(a, 1 - a) for a in first]
    points = torch.tensor(
        [source_vector(w, NAMES) for w in policies.build("ppl", grid=pairs).points()]
    )
    sources = [torch.randn(9, 700) * 3 for _ in NAMES]
    targets = torch.arange(9)
    with LiveBytes() as seen:
        got = logits.grid_nll(sources, targets, points)
    assert seen.peak - 2 * got.nbytes <= MIB * 1.1
    some = torch.arange(0, len(points), math.ceil(len(points) / 50))
    want = logits.grid_nll_one_by_one(sources, targets, points[some])
    torch.testing.assert_close(got[some], want, rtol=1e-5, atol=1e-5)


def test_a_position_does_not_keep_the_chunk_that_it_was_run_in(fuser_of, monkeypatch):
    """Hidden states at the ends of prompts are held until all prompts have run."""
    held = []
    monkeypatch.setattr(EntropyCollector, "read_next", lambda self, view: held.extend(view.hidden))
    fuser = fuser_of(("ent", {}), PPL)
    prompts = [Prompt(tokens(count)) for count in (5, 150, 290)]
    with torch.inference_mode():
        prefill(fuser.ensemble, prompts, collectors_for(fuser, prompts))
    assert len(held) == 3 * len(NAMES)
    assert all(x.untyped_storage().nbytes() == x.nbytes for x in held)
