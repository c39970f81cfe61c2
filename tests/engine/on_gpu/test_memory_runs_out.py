"""Memory that runs out, at any allocation of a run: the run goes on, and gives the same.

TRIMIX_EVERY_ALLOCATION=1 lets each of them fail in turn, which takes an hour; else a few do.
"""

from __future__ import annotations

import dataclasses
import os

import pytest
import torch

from tests.support import gpu
from tests.support.running import TRIO
from trimix_lm_eval import TriMix
from trimix_lm_eval.engine import memory
from trimix_lm_eval.engine.model_runner import Ensemble, Fuser
from trimix_lm_eval.engine.sampler import SamplingParams
from trimix_lm_eval.fusion import policies
from trimix_lm_eval.fusion.config import FusionConfig
from trimix_lm_eval.utils.errors import TrimixError

EVERY = "TRIMIX_EVERY_ALLOCATION" in os.environ
#: Allocations of a run that fail in turn, where not all do.
SOME = 2
#: How the lack of memory is told; by turns.
ERRORS = [
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(h)`"),
    MemoryError,
]
BLOCK = "The heron and the hen were there. "
PAIRS = [("The hen", " e"), (BLOCK + "In", " inn"), (BLOCK + "x", " e"), (BLOCK + "x", " a")]
FIXED, PPL, GATE = ("fixed", {"alpha": 0.4, "beta": 0.8}), ("ppl", {}), ("gate", {})


@pytest.fixture(scope="module")
def loaded(pico):
    folders = {role: pico("llama")[role] for role in TRIO}
    return TriMix.from_pretrained(**folders, policy="ppl", dtype="float32", device="cuda:0")


def score(model):
    return told(model.loglikelihood(PAIRS))


def roll(model):
    return told(model.loglikelihood_rolling(["The hen in the barn, there", "In"]))


def told(scores):
    """Scores to a precision that neither batches nor chunks change."""
    return [(one.is_greedy, one.choice.weights, round(one.log_likelihood, 3)) for one in scores]


def write(model):
    jobs = [
        (text, SamplingParams(max_new_tokens=5, seed=i, temperature=0.7 * i))
        for i, text in enumerate(["The hen", "In"])
    ]
    found = model.iter_generate(jobs)
    return sorted((i, which, one.text, one.finish_reason) for i, which, one in found)


#: What is asked for, by which policies, in batches of how many, with how many drafts.
CASES = {
    "scores": (score, [PPL], 2, 0),
    "scores, row by row": (score, [FIXED], 1, 0),
    "whole texts": (roll, [PPL], 2, 0),
    "captured": (write, [FIXED], 2, 2),
    "captured, choosing": (write, [PPL], 2, 0),
    "captured, row by row": (write, [GATE], 1, 1),
    "not captured": (write, [PPL], 2, 2),
    "sweep": (write, [FIXED, PPL], 1, 1),
}


def allocations(count, case):
    """All, or some that differ from case to case."""
    step = 1 if EVERY else count // SOME
    return range(1 + sum(map(ord, case)) % step, count + 1, step)


@pytest.mark.parametrize("case", CASES)
def test_any_allocation_may_fail(loaded, case):
    act, asked, batch_size, drafts = CASES[case]
    configs = tuple(FusionConfig(policies.build(name, **how)) for name, how in asked)
    settings = dataclasses.replace(
        loaded.settings,
        batch_size=batch_size,
        speculative=drafts,
        cuda_graphs="off" if case == "not captured" else "auto",
    )

    def model():
        """That has never run out of memory."""
        whole = loaded.fuser.ensemble
        fuser = Fuser(Ensemble(whole.sources, whole.unused), configs)
        return TriMix(settings, loaded.tokenizer, fuser, loaded.report)

    one = model()
    with gpu.out_of_memory(at=None) as seen:
        want = act(one)
    count = seen.allocated
    for at in allocations(count, case):
        one = model()
        with gpu.out_of_memory(at, ERRORS[at % len(ERRORS)]()) as seen:
            assert act(one) == want, f"other results where allocation {at} of {count} fails"
        assert seen.allocated >= at, "one did fail"


def test_chunks_shrink_before_a_request_fails(loaded):
    """With a batch of one, and before they are too small for a GPU, what is held is let go."""
    ensemble, held, steps = Ensemble(loaded.fuser.ensemble.sources), ["a prefix"], []
    positions = ensemble.logit_positions
    with pytest.raises(TrimixError, match="Out of memory with a batch of one: MemoryError"):
        while True:
            memory.halve_batch_size(ensemble, 1, MemoryError(), lambda: bool(held and held.pop()))
            steps.append((ensemble.chunk_tokens, len(held)))
    assert steps == [(1024, 1), (512, 1), (256, 1), (256, 0), (128, 0), (64, 0), (32, 0), (16, 0)]
    assert ensemble.logit_positions == positions // 2**7
