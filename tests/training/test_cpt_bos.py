"""Bits per byte never score a BOS, whoever puts it before a text."""

from __future__ import annotations

import math

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.conftest import byte_tokenizer
from trimix_lm_eval.training.cpt.measure import Windows, measure
from trimix_lm_eval.training.cpt.packing import Packer, Rows

BOS = 256
LENGTH = 32
TEXTS = ["the hen ran over the rivers in the rain", "<s>in a barn", "<s><s>rain", "x"]


def adding_bos() -> PreTrainedTokenizerFast:
    """A tokenizer that puts BOS before each text by itself, as those of Llama and Gemma do."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BOS)]
    )
    assert tokenizer("x")["input_ids"] == [BOS, ord("x") - 33]
    return tokenizer


@torch.no_grad()
def naive(model, texts: list[str]) -> float:
    """Bits per byte, a token at a time: BOS, then the text, each token after as many as fit."""
    tokenizer, nats = byte_tokenizer(), 0.0
    for text in texts:
        ids = tokenizer(text.replace("<s>", ""), add_special_tokens=False)["input_ids"]
        whole = [BOS, *ids]
        for at in range(1, len(whole)):
            first = (at - 1) // LENGTH * LENGTH  # where the window of this token begins
            last = min(first + LENGTH, len(whole) - 1)
            before = whole[max(0, last - LENGTH) : at]
            logits = model(torch.tensor([before])).logits[0, -1].double()
            nats -= float(logits.log_softmax(-1)[whole[at]])
    return nats / math.log(2) / sum(len(text.encode()) for text in texts)


@pytest.mark.parametrize("make", [byte_tokenizer, adding_bos])
def test_bits_per_byte_are_those_of_a_naive_reference(pico, make):
    model = AutoModelForCausalLM.from_pretrained(
        pico("llama", padded=False)["small_base"], dtype=torch.float32
    )
    windows = Windows.of(TEXTS, make(), LENGTH)
    assert not any(BOS in target for _, target in windows.windows)
    found = measure(model, windows, 3).bits_per_byte
    assert found == pytest.approx(naive(model, TEXTS), rel=1e-5)


def test_a_text_with_a_bos_of_its_own_is_trained_on_with_one(tmp_path):
    packer = Packer(byte_tokenizer(), tmp_path / "t")
    packer.add(["<s>in", "in"])
    packer.close()
    rows = Rows(tmp_path / "t", 3, filler=258)
    first, second = (rows[i]["input_ids"][0].tolist() for i in (0, 1))
    assert first == second and first[0] == BOS
    assert packer.tokens == 6
