"""Random mixtures of everything: what GPUs write and score by captured rounds is what a CPU does.

More of them, drawn anew:

    python -m pytest -p tests.support.gpu.plugin -p no:randomly --fuzz-cases 72000 \\
        tests/engine/on_gpu/test_mixtures.py      # 2,000
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import CAPTURED
from tests.support.fuzzing import budget
from tests.support.gpu.texts import PROMPTS, written
from trimix_lm_eval.engine.sampler import SamplingParams
from trimix_lm_eval.fusion import policies
from trimix_lm_eval.fusion.config import FusionConfig
from trimix_lm_eval.fusion.weights import PAPER_GRID


def config(policy, plausibility=None, source="large_ins", **options):
    return FusionConfig(policies.build(policy, **options), plausibility, source)


GRID = [config("fixed", alpha=a, beta=b) for a, b, _ in PAPER_GRID]
OTHERS = [
    *(config(name) for name in ("ppl", "ent", "gate", "small_cpt", "small_base")),
    config("gate", 0.3),
    config("gate", floor=0.2),
    config("mixture", alpha=0.3, beta=0.4),
    *(config(name) for name in ("contrastive", "packllm", "uncertainty", "safe", "core", "bayes")),
    config("fixed", 0.1, alpha=0.3, beta=0.5),
    config("fixed", 0.2, "small_cpt", alpha=0.3, beta=0.5),
]
BLOCKS = [
    "",
    "The heron and the hen were there in the inn, or in the barn. ",
    "In winter the river there is the other river, then there is an inn. ",
]
prompts = st.builds(str.__add__, st.sampled_from(BLOCKS), st.sampled_from(PROMPTS))
params = st.builds(
    SamplingParams,
    max_new_tokens=st.integers(1, 24),
    temperature=st.sampled_from([0.0, 0.0, 0.0, 0.8, 2.0]),
    top_k=st.sampled_from([0, 5]),
    top_p=st.sampled_from([1.0, 0.8]),
    seed=st.integers(0, 99),
    stop=st.sampled_from([(), (), ("e",), ("th", " h"), ("ད",)]),
)
jobs = st.lists(st.tuples(prompts, params), min_size=1, max_size=8)
one_config = st.sampled_from([*GRID[::7], *OTHERS]).map(lambda one: [one])
sweeps = st.lists(st.sampled_from([*GRID, *OTHERS]), min_size=2, max_size=8)
placed = st.sampled_from([(), (), (("small_device", "cuda:1"),), (("large_device", "cuda:1"),)])
drafts, positions = st.sampled_from([0, 1, 4, "auto"]), st.sampled_from([1000, 1000, 3])
families = st.sampled_from(["llama", "llama", "gemma3", "qwen2", *CAPTURED[3:]])


@budget(24)
@given(jobs, one_config | sweeps, placed, families, st.integers(1, 5), drafts, positions)
def test_texts(models, jobs, configs, devices, family, batch_size, k, positions):
    """Greedy and sampled, long and short, alone and in sweeps; they come and go in any order."""
    asked = {"batch_size": batch_size, "speculative": k, "positions": positions}
    cpu, device = models(family, devices=devices, configs=tuple(configs), **asked)
    assert written(device, jobs) == written(cpu, jobs)
    assert device.fuser.ensemble.not_captured is None


pairs = st.lists(
    st.tuples(prompts, st.sampled_from([" then", " in the inn", "x", " hen"])),
    min_size=1,
    max_size=6,
)


@budget(8)
@given(pairs, one_config | sweeps, placed, families, st.integers(1, 5))
def test_log_likelihoods(models, pairs, configs, devices, family, batch_size):
    both = models(family, devices=devices, configs=tuple(configs), batch_size=batch_size)
    cpu, device = ({(i, c): x for i, c, x in m.iter_loglikelihood(pairs)} for m in both)
    assert cpu.keys() == device.keys()
    for which, one in cpu.items():
        assert device[which].log_likelihood == pytest.approx(one.log_likelihood, rel=1e-5, abs=1e-5)
