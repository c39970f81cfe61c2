"""Tests of a process with a simulated GPU, run by `test_on_a_simulated_gpu`; no other sees them."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.support.gpu.kernels import SimulatedTensor
from tests.support.gpu.texts import K
from tests.support.running import TRIO
from trimix_lm_eval import TriMix
from trimix_lm_eval.engine.graph_decoder import GraphDecoder
from trimix_lm_eval.engine.model_runner import Fuser
from trimix_lm_eval.engine.static_batch import StaticBatch

if not (torch.cuda.is_available() and type(torch.empty(0, device="cuda")) is SimulatedTensor):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="module")
def models(pico):
    """(CPU, GPU) models; made anew for each call, over the same sources.

    By family, policy, on which GPUs (pairs of setting and device), fusion configs, and for how many
    positions logits may exist at once.
    """
    made = {}

    def get(family="llama", policy="fixed", devices=(), configs=(), positions=1000, **more):
        policy = "ppl" if configs else policy  # which needs all sources
        key = family, policy, devices
        if key not in made:
            folders = {role: pico(family)[role] for role in TRIO}
            asked = {**folders, "policy": policy, "dtype": "float32"}
            there = {"device": "cuda:0", **dict(devices)}
            made[key] = [TriMix.from_pretrained(**asked, **on) for on in ({"device": "cpu"}, there)]
        found = []
        for model in made[key]:
            model.fuser.ensemble.cuda_graphs = True
            model.fuser.ensemble.not_captured = None
            model.fuser.ensemble.logit_positions = positions
            how = dataclasses.replace(model.settings, **{"speculative": K, **more})
            fuser = Fuser(model.fuser.ensemble, configs) if configs else model.fuser
            found.append(TriMix(how, model.tokenizer, fuser, model.report))
        return found

    return get


@pytest.fixture
def decoders(monkeypatch):
    """The graph decoders that are made, each with the shapes that its caches have had."""
    found = []
    make, make_room = GraphDecoder.__init__, StaticBatch._make_room

    def spied(self, *args):
        make(self, *args)
        self.shapes = []
        found.append(self)

    def grown(self, *args):
        make_room(self, *args)
        found[-1].shapes.append(self.shape)

    monkeypatch.setattr(GraphDecoder, "__init__", spied)
    monkeypatch.setattr(StaticBatch, "_make_room", grown)
    return found
