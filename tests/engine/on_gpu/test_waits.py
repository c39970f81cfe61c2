"""Where the host waits for a GPU, and that what is computed there is what a CPU computes."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.support import gpu
from tests.support.gpu import texts
from tests.support.loaded import load
from tests.support.running import TRIO
from trimix_lm_eval import TriMix
from trimix_lm_eval.engine.prefill import PrefixTree, choices_of, collectors_for, prefill
from trimix_lm_eval.engine.request import Prompt
from trimix_lm_eval.utils.errors import TrimixError

PROMPTS = [
    *texts.PROMPTS[:5],
    "Her net is in the river there",
    "then",
    "Ten hens ate the grain in the barn, the inn and the river bank there",
]


@pytest.fixture(scope="module")
def models(pico):
    """The same trio on the CPU and on the GPU, by policy."""
    made = {}

    def get(policy, **more):
        key = (policy, *sorted(more.items()))
        if key not in made:
            folders = {role: pico("llama")[role] for role in TRIO}
            asked = {**folders, "policy": policy, "dtype": "float32", **more}
            made[key] = [TriMix.from_pretrained(**asked, device=d) for d in ("cpu", "cuda:0")]
        return made[key]

    return get


#: Policies that make a distribution by a rule of their own.
MIXING = ("mixture", "safe", "core", "bayes")


def prompts_of(model):
    return [Prompt(tuple(model.tokenizer(text).input_ids)) for text in PROMPTS]


@pytest.mark.parametrize(
    "policy", ["ppl", "ent", "ppl_answer", "fixed", "gate", *MIXING[2:], "packllm"]
)
def test_a_batch_of_prompts_costs_few_waits(models, policy):
    cpu, device = models(policy)
    found = []
    for model in (cpu, device):
        prompts = prompts_of(model)
        with torch.inference_mode(), gpu.watch() as seen:
            collectors = collectors_for(model.fuser, prompts)
            prefill(model.fuser.ensemble, prompts, collectors)
            pairs = zip(prompts, collectors, strict=True)
            found.append([choices_of(model.fuser, *pair)[0] for pair in pairs])
    assert len(seen.syncs) <= 3, seen.by_site("sync")
    assert not seen.of("h2d"), "no copy from pageable memory"
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if one:  # points are chosen, but the weights of bayes and packllm are computed
            assert other.weights == pytest.approx(one.weights, abs=1e-5)
        if one and one.nlls:
            assert other.nlls == pytest.approx(one.nlls, abs=1e-5)


def test_prompts_that_share_a_prefix_wait_no_more(models):
    _, model = models("ppl")
    block = tuple(
        model.tokenizer("The heron and the hen are in the river near the inn. ").input_ids
    )
    prompts = [Prompt(block + p.ids) for p in prompts_of(model)]
    with torch.inference_mode(), gpu.watch() as seen:
        nodes = 0
        for node, some in PrefixTree(model.fuser, prompts).walk():
            mine = [prompts[i] for i in some]
            collectors = collectors_for(model.fuser, mine)
            start = node.start(mine, collectors)
            prefill(model.fuser.ensemble, [node.rest(p) for p in mine], collectors, start)
            nodes += 1
    assert nodes == 1 and node.length >= 32
    assert len(seen.syncs) <= 2, seen.by_site("sync")  # of the shared block, and of the rest
    assert not seen.of("h2d")


@pytest.mark.parametrize("policy", ["ppl", "ent", "fixed", "gate", *MIXING])
def test_scores_cost_a_wait_a_pass(models, policy):
    """One pass of a batch's prompts and one of its options, however many rows there are."""
    pairs = [(text, more) for text in PROMPTS for more in (" the barn", " e", " a river bank")]
    cpu, device = (model.loglikelihood(pairs) for model in models(policy))
    for one, other in zip(cpu, device, strict=True):
        assert other.log_likelihood == pytest.approx(one.log_likelihood, abs=1e-5)
        assert other.is_greedy == one.is_greedy and other.choice.weights == pytest.approx(
            one.choice.weights, abs=1e-5, nan_ok=True
        )
    with gpu.watch() as seen:
        sized(models(policy)[1], 8).loglikelihood(pairs[0::3])
    assert len(seen.syncs) <= 2, seen.by_site("sync")
    assert not seen.of("h2d")


ENDS = (" the barn", " e", " a river bank", " a river", " the barn and the hen")


def test_options_and_contexts_of_many_lengths_cost_two_waits_a_batch(models):
    """However many passes their tokens take, and where options differ in context."""
    model = sized(models("ppl")[1], 8)
    for pairs, questions in (
        ([(text, more) for text in PROMPTS for more in ENDS], None),
        ([(text + end, " bank") for text in PROMPTS for end in ENDS], [i // 5 for i in range(40)]),
    ):
        with gpu.watch() as seen:
            list(model.iter_loglikelihood(pairs, questions=questions))
        assert len(seen.syncs) <= 2, seen.by_site("sync")
        assert not seen.of("h2d"), "no copy from pageable memory"


def test_prompts_that_were_read_for_a_task_cost_no_more_waits(models):
    cpu, device = (sized(model, 8) for model in models("ppl_task"))
    pairs = [(text, more) for text in PROMPTS for more in ENDS]
    found = []
    for model in (cpu, device):
        chosen = model.choose_for_task(PROMPTS)
        with gpu.watch() as seen:
            scores = model.iter_loglikelihood(pairs, [(chosen.weights,)] * len(pairs))
            found.append([one.log_likelihood for *_, one in sorted(scores)])
    assert len(seen.syncs) == 1, seen.by_site("sync")
    assert not seen.of("h2d")
    assert found[1] == pytest.approx(found[0], abs=1e-5)


def sized(model, batch_size):
    settings = dataclasses.replace(model.settings, batch_size=batch_size)
    return TriMix(settings, model.tokenizer, model.fuser, model.report)


@pytest.mark.parametrize("policy", ["ppl", "fixed", "gate", *MIXING])
def test_rolling(models, policy):
    documents = [text * 4 for text in PROMPTS]
    cpu, device = (
        [one.log_likelihood for one in model.loglikelihood_rolling(documents)]
        for model in models(policy)
    )
    assert device == pytest.approx(cpu, rel=1e-6)
    with gpu.watch() as seen:
        sized(models(policy)[1], 8).loglikelihood_rolling(PROMPTS)
    assert len(seen.syncs) == 1 and not seen.of("h2d"), seen.by_site("sync", "h2d")


@pytest.mark.parametrize(
    ("speculative", "how"),
    [(0, {"temperature": 0.9}), (2, {}), (4, {"temperature": 1.2, "top_p": 0.8})],
)
def test_texts_operation_by_operation(models, speculative, how):
    """Token for token, greedy or sampled: noise depends on no device."""
    cpu, device = models("ppl", speculative=speculative, batch_size=3, cuda_graphs="off")
    assert cpu.generate(PROMPTS, max_new_tokens=10, **how) == device.generate(
        PROMPTS, max_new_tokens=10, **how
    )


def test_a_source_that_is_not_finite_is_named(pico):
    """Though the numbers of all prompts come to the host together."""
    model = load(pico("llama")).weighted("ppl", batch_size=4)
    with torch.no_grad():
        model.fuser.ensemble.sources[1].model.get_output_embeddings().weight[5] = torch.inf
    with pytest.raises(TrimixError, match="small_cpt gives logits that are NaN or infinite"):
        model.loglikelihood([(text, " the barn") for text in PROMPTS])
