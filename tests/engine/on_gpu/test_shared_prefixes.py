"""Rows that share a prefix hold it once in captured rounds, and write what they would alone."""

from __future__ import annotations

import pytest

from tests.engine.on_gpu.test_graphs import decoders, models, written
from trimix_lm_eval.engine.graph_decoder import GraphDecoder
from trimix_lm_eval.engine.sampler import SamplingParams

__all__ = ["decoders", "models"]

BLOCKS = [
    "The heron and the hen were there in the inn, or in the barn. ",
    "In winter the river there is the other river, then there is an inn. ",
]
ENDS = ["Then", "The hen", "x", "In the", "\n", "ད"]


def jobs_of(blocks, most=(9, 16)):
    return [
        (block + end, SamplingParams(most[i % len(most)], temperature=0.7 * (i % 2), seed=i))
        for block in blocks
        for i, end in enumerate(ENDS)
    ]


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("batch_size", [2, 4])
def test_texts_after_shared_blocks(models, decoders, family, batch_size):
    """Two blocks, whose rows are in the batch together while one makes way for the other."""
    cpu, device = models(family, "ppl", batch_size=batch_size)
    jobs = jobs_of(BLOCKS)
    assert written(device, jobs) == written(cpu, jobs)
    (decoder,) = decoders
    block = len(device.tokenizer(BLOCKS[1]).input_ids)
    assert decoder.shape.shared == 128, "both fit, each once"
    assert any(work.graphs for work in decoder.rounds.values())
    assert block < decoder.shape.slots


def test_a_prefix_is_held_once(models, decoders, monkeypatch):
    """However often rows that have it come."""
    _, device = models("llama", "fixed", batch_size=2)
    held = []
    monkeypatch.setattr(GraphDecoder, "_make_room", spied(held))
    written(device, jobs_of(BLOCKS[:1]))
    assert len(held) >= 4 and all(count == 1 for count in held)


def spied(held):
    make_room = GraphDecoder._make_room

    def make(self, *args):
        held.append(len(self.prefixes))
        return make_room(self, *args)

    return make
