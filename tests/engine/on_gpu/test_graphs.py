"""Captured rounds: the texts of the eager path and of a CPU, at a handful of launches."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from tests.conftest import CAPTURED, byte_tokenizer
from tests.support import gpu
from tests.support.gpu.texts import PROMPTS, K, jobs_of, three_rounds, written
from tests.support.running import TRIO
from trimix_lm_eval import TriMix
from trimix_lm_eval.engine import graph_decoder, static_batch
from trimix_lm_eval.engine.graph_decoder import can_capture
from trimix_lm_eval.engine.graph_round import Round
from trimix_lm_eval.engine.sampler import SamplingParams
from trimix_lm_eval.engine.static_batch import StaticBatch
from trimix_lm_eval.engine.static_cache import StaticCache


@pytest.mark.parametrize(
    ("family", "policy", "batch_size"),
    [
        ("llama", "fixed", 1),
        ("llama", "ppl", 3),
        ("llama", "gate", 3),
        ("qwen2", "fixed", 3),
        ("gemma3", "fixed", 3),
        ("gemma3", "gate", 1),
        ("llama", "mixture", 3),
        ("llama", "core", 1),
        ("qwen2", "packllm", 3),
        ("llama", "bayes", 3),
        ("qwen2", "bayes", 1),
        *((family, "ppl", 3) for family in CAPTURED[3:]),
    ],
)
def test_captured_is_what_a_cpu_writes(models, decoders, family, policy, batch_size):
    cpu, device = models(family, policy, batch_size=batch_size)
    how = [{}, {"temperature": 0.9}, {"temperature": 1.3, "top_p": 0.8, "top_k": 30}]
    for one in how:
        jobs = jobs_of(**one)
        assert written(device, jobs) == written(cpu, jobs)
    rounds = [work for decoder in decoders for work in decoder.rounds.values()]
    assert len(decoders) == len(how) and any(work.graphs for work in rounds)


@pytest.mark.parametrize("k", [0, 1, 2, 8, "auto"])
def test_whatever_the_drafts(models, k):
    cpu, device = models(speculative=k, batch_size=3)
    assert written(device, jobs_of()) == written(cpu, jobs_of())


def test_eager_is_the_reference(models, decoders):
    _, device = models(batch_size=3)
    captured = written(device, jobs_of())
    device.fuser.ensemble.cuda_graphs = False
    count = len(decoders)
    assert written(device, jobs_of()) == captured
    assert len(decoders) == count == 1


def growing():
    """Longest prompts come first; those after them go on longer, with noise that tells steps."""
    texts = ["Her hens ate in the barn there", "In the inn there is a hen", "A river there", "ths"]
    return [
        (text, SamplingParams(2 + 20 * i, temperature=1.0, seed=i)) for i, text in enumerate(texts)
    ]


def test_caches_grow_while_a_round_runs(models, decoders, monkeypatch):
    """What it gives is of the rows as they were numbered when it began."""
    monkeypatch.setattr(static_batch, "_SLOTS", 2)
    cpu, device = models(batch_size=2)
    jobs = growing()
    assert written(device, jobs) == written(cpu, jobs)
    assert len(set(decoders[0].shapes)) > 1
    graphs = [graph for work in decoders[0].rounds.values() for graph in work.graphs]
    assert graphs and device.fuser.ensemble.not_captured is None
    # What one graph needs no longer is given to another of the same pool and stream only.
    assert len({(graph.pool(), graph.stream.cuda_stream) for graph in graphs}) == 1


def test_a_row_leaves_nothing_to_the_next(models, monkeypatch):
    """What a text wrote behind its end may be no numbers, and 0 times these is none either."""
    admit = StaticBatch.admit

    def spoiled(self, *args):
        for cache in self.caches:
            free = [row for row in range(self.shape.rows) if row not in self.sequences]
            for layer in cache.layers:
                for held in layer.held:
                    held[:, free] = torch.nan
        admit(self, *args)

    monkeypatch.setattr(StaticBatch, "admit", spoiled)
    cpu, device = models(batch_size=2)
    assert written(device, jobs_of()) == written(cpu, jobs_of())


def test_what_was_outgrown_goes_at_once(models, monkeypatch):
    """Its memory is needed for what takes its place; Python may not look for it before that."""
    made = []
    for kind in (StaticCache, Round, torch.cuda.CUDAGraph):

        def noted(self, *args, make=kind.__init__, **kwargs):
            make(self, *args, **kwargs)
            made.append(weakref.ref(self))

        monkeypatch.setattr(kind, "__init__", noted)
    monkeypatch.setattr(static_batch, "_SLOTS", 2)
    _, device = models(batch_size=2)
    gc.disable()
    try:
        written(device, growing())
        left = [one() for one in made if one() is not None]
    finally:
        gc.enable()
    assert len(made) > 12 and not left


def test_a_source_that_is_spread_over_gpus_is_not_captured(models):
    _, device = models()
    assert can_capture(device.fuser)
    head = device.fuser.ensemble.sources[0].model.get_output_embeddings()
    kept = head.weight
    try:
        head.weight = torch.nn.Parameter(kept.to("cuda:1"), requires_grad=False)
        assert not can_capture(device.fuser)
    finally:
        head.weight = kept


def test_graphs_that_are_let_go(models, monkeypatch):
    """Kinds of rounds take turns, and few are held: what is captured then is captured as before."""
    monkeypatch.setattr(graph_decoder, "_MOST_KINDS", 1)
    cpu, device = models(batch_size=1, speculative=4)
    jobs = [(text, SamplingParams(24, temperature=i % 2)) for i, text in enumerate(PROMPTS)]
    assert written(device, jobs) == written(cpu, jobs)
    ensemble = device.fuser.ensemble
    assert ensemble.not_captured is None and ensemble.graphs_captured > 6


# ---------------------------------------------------------------- what a round costs


@pytest.mark.parametrize("batch_size", [1, 16])
def test_a_round_is_a_few_launches_and_one_wait(models, batch_size):
    _, device = models(batch_size=batch_size)
    kinds = three_rounds(device, batch_size)
    assert 0 < kinds["launch"] <= 3 * 24
    assert kinds["sync"] <= 3 * 1
    assert kinds["h2d"] == 0


def test_a_round_does_not_wait_but_where_it_may(models):
    """All of it under `no_sync`, but the one place where its result is waited for."""
    _, device = models(batch_size=3)
    written(device, jobs_of())
    begin = Round.begin

    def strict(self, events):
        if self.count == 2:  # the third is captured, for which it waits once
            return begin(self, events)
        with gpu.no_sync():
            return begin(self, events)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Round, "begin", strict)
        assert written(device, jobs_of())
    assert device.fuser.ensemble.not_captured is None


@pytest.mark.parametrize("how", [{}, {"temperature": 1.0, "top_p": 0.8}])
def test_a_source_that_is_not_finite_is_named(models, how):
    cpu, device = models("llama", "fixed", batch_size=3)
    head = device.fuser.ensemble.sources[1].model.get_output_embeddings()
    kept = head.weight.clone()
    try:
        with torch.no_grad():
            head.weight[7] = torch.nan
        with pytest.raises(Exception, match="small_cpt gives logits that are NaN or infinite"):
            written(device, jobs_of(**how))
    finally:
        with torch.no_grad():
            head.weight.copy_(kept)


def test_positions_stay_in_a_learned_table(tmp_path):
    """Rows run on beyond the end of their text, by drafts and by rounds that nobody asked for."""
    folders = {}
    for seed, role in enumerate(TRIO):
        torch.manual_seed(seed)
        config = GPT2Config(
            vocab_size=304, n_positions=96, n_embd=32, n_layer=2, n_head=4, initializer_range=0.35
        )
        GPT2LMHeadModel(config).save_pretrained(tmp_path / role)
        byte_tokenizer().save_pretrained(tmp_path / role)
        folders[role] = str(tmp_path / role)
    asked = {**folders, "policy": "fixed", "dtype": "float32", "speculative": K, "batch_size": 3}
    cpu, device = (TriMix.from_pretrained(**asked, device=one) for one in ("cpu", "cuda:0"))
    assert can_capture(device.fuser)
    # The first two fill the table to its end; the last goes on long after the others' end.
    jobs = [
        ("x" * 86, SamplingParams(10)),
        ("z" * 80, SamplingParams(16)),
        ("y", SamplingParams(40)),
    ]
    assert written(device, jobs) == written(cpu, jobs)
