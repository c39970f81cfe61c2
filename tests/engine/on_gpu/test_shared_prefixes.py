"""Rows that share a prefix hold it once in captured rounds, and write what they would alone."""

from __future__ import annotations

import pytest

from tests.support.gpu.texts import written
from trimix_lm_eval.engine.sampler import SamplingParams

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
    assert decoder.batch.shape.families == 2 and decoder.batch.shape.shared == 128
    assert any(work.graphs for work in decoder.rounds.values())
    assert block < decoder.batch.shape.slots


def test_a_prefix_is_held_once(models, decoders):
    """However often rows that have it come."""
    _, device = models("llama", "fixed", batch_size=2)
    written(device, jobs_of(BLOCKS[:1]))
    shapes = decoders[0].shapes
    assert len(shapes) >= 3 and all(shape.families == 1 for shape in shapes)


def test_a_row_without_a_prefix_beside_others(models, decoders):
    """There are two prefixes by then; it must find nothing where another row has its seat."""
    block = "The heron and the hen were there in the inn, or in the barn. The hen went to the barn"
    other = "There is a river near the inn, and then the heron"
    texts = [(other, 12), (other, 1), (block, 3), (block, 8)]
    texts += [("The hen went to the barn", most) for most in (18, 1, 1, 1)]
    jobs = [(text, SamplingParams(most)) for text, most in texts]
    cpu, device = models("llama", "ppl", batch_size=2, speculative=0)
    assert written(device, jobs) == written(cpu, jobs)
    assert decoders[0].batch.shape.families == 2
