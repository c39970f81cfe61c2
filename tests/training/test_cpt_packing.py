"""Rows of documents that do not see each other: how they are cut, and what models make of them."""

from __future__ import annotations

import random

import pytest
import torch
import transformers
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from tests.conftest import byte_tokenizer, config_of
from trimix_lm_eval.training.cpt.apart import documents_stay_apart
from trimix_lm_eval.training.cpt.packing import IGNORED, Blocks, Packer, Rows

BOS, EOS, FILLER = 256, 257, 258
DOCUMENTS = ["in the barn", "the hen", "x" * 31, "a", "rain", "then", "over rivers, over"]


def write(folder, documents, name="t.tokens", tokenizer=None):
    """What a `Packer` makes of documents; returns its file, and the ids of each document."""
    tokenizer = tokenizer or byte_tokenizer()
    packer = Packer(tokenizer, folder / name)
    packer.add(documents)
    packer.close()
    begin = BOS if tokenizer.bos_token_id is not None else EOS
    found = [
        [begin, *tokenizer(text, add_special_tokens=False)["input_ids"], EOS] for text in documents
    ]
    return folder / name, found


def pieces(documents, first, length):
    """(position, token, label) as a row of the stream of documents is to have them."""
    stream = []
    for ids in documents:
        begin = len(stream)
        for place, token in enumerate(ids):
            at = begin + place
            start = max(begin, at // length * length)  # of what the row has of the document
            stream.append((at - start, token, IGNORED if at == start else token))
    stream = stream[first : first + length]
    return stream + [(i, FILLER, IGNORED) for i in range(length - len(stream))]


@pytest.mark.parametrize("length", [3, 16, 1000])
def test_rows_tell_where_documents_begin(tmp_path, length):
    path, ids = write(tmp_path, DOCUMENTS)
    rows = Rows(path, length, FILLER)
    assert len(rows) == -(-sum(map(len, ids)) // length)
    for number in range(len(rows)):
        row = rows[number]
        names = ("position_ids", "input_ids", "labels")
        found = list(zip(*(row[name][0].tolist() for name in names), strict=True))
        assert found == pieces(ids, number * length, length)


def test_a_document_begins_with_what_precedes_it_when_it_is_scored(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = None
    path, ids = write(tmp_path, ["in", "a"], tokenizer=tokenizer)
    assert ids[0][0] == EOS and len(ids[0]) > 2
    found = Rows(path, 7, FILLER)[0]["input_ids"][0].tolist()
    assert found == [*ids[0], *ids[1], *[FILLER] * 7][:7]


def test_blocks_hold_each_document_in_a_row_of_its_own(tmp_path):
    draw = random.Random(0)
    documents = ["x" * draw.randint(1, 40) for _ in range(200)]
    path, ids = write(tmp_path, documents)
    wanted = sorted(
        part
        for document in ids
        for part in (document[at : at + 32] for at in range(0, len(document), 32))
        if len(part) > 1
    )
    blocks = Blocks(path, 32, FILLER)
    found, padding, tokens = [], 0, 0
    for number in range(len(blocks)):
        block = blocks[number]
        assert block["input_ids"].size <= 32
        for row, labels in zip(block["input_ids"], block["labels"], strict=True):
            size = 1 + int((labels != IGNORED).sum())
            assert labels[0] == IGNORED and labels[1:size].tolist() == row[1:size].tolist()
            assert set(labels[size:].tolist()) <= {IGNORED}
            found.append(row[:size].tolist())
            padding, tokens = padding + len(row) - size, tokens + size
    assert sorted(found) == wanted
    assert padding < 0.01 * tokens


def test_no_text_makes_no_rows(tmp_path):
    path, _ = write(tmp_path, [])
    assert len(Rows(path, 8, FILLER)) == len(Blocks(path, 8, FILLER)) == 0


# ---------------------------------------------------------------- in models


def hybrid():
    """A model whose convolutions run over what stands before, whatever the positions say."""
    if not hasattr(transformers, "Lfm2Config"):
        pytest.skip("this version of transformers has no such model")
    shape = {"vocab_size": 290, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    return transformers.Lfm2Config(
        **shape,
        num_attention_heads=4,
        num_key_value_heads=2,
        layer_types=["conv", "full_attention"],
        initializer_range=0.35,
    )


def made(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.config.use_cache = False
    return model


@torch.no_grad()
def loss_of(model, rows, document):
    """Summed NLL of one document, found in the rows by its ids; and the place of its tokens."""
    for number in range(len(rows)):
        batch = {name: torch.from_numpy(value) for name, value in rows[number].items()}
        labels = batch.pop("labels")
        logits = model(**batch).logits
        for row in range(len(labels)):
            flat = batch["input_ids"][row].tolist()
            for at in range(len(flat) - len(document) + 1):
                if flat[at : at + len(document)] == document:
                    of = slice(at, at + len(document))
                    return cross_entropy(
                        logits[row, of][:-1], labels[row, of][1:], reduction="sum"
                    ).item()
    raise AssertionError("the document is in no row")


@pytest.mark.parametrize("family", ["llama", "mixtral", "gemma3", "hybrid"])
def test_the_loss_of_a_document_does_not_depend_on_the_one_before(tmp_path, family):
    model = made(hybrid() if family == "hybrid" else config_of(family, "small_base"))
    packed = documents_stay_apart(model)
    assert packed is (family != "hybrid")
    found = []
    for number, first in enumerate(("the hen ran over", "in a barn the ra")):
        path, ids = write(tmp_path, [first, "then the rain fell"], f"{number}.tokens")
        rows = (Rows if packed else Blocks)(path, 64, FILLER)
        assert len(rows) == 1
        found.append(loss_of(model, rows, ids[1]))
    whole = torch.tensor(ids[1])
    alone = cross_entropy(model(whole[None]).logits[0, :-1], whole[1:], reduction="sum").item()
    assert found == pytest.approx([alone, alone], rel=1e-5)


def test_a_row_of_two_documents_would_leak_in_a_hybrid(tmp_path):
    model = made(hybrid())
    found = []
    for number, first in enumerate(("the hen ran over", "in a barn the ra")):
        path, ids = write(tmp_path, [first, "then the rain fell"], f"{number}.tokens")
        found.append(loss_of(model, Rows(path, 64, FILLER), ids[1]))
    assert abs(found[0] - found[1]) > 1e-2


def test_a_model_that_refuses_positions_gets_rows_of_one_document():
    class Refusing(torch.nn.Module):
        device = torch.device("cpu")

        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(8, 2)

        def get_input_embeddings(self):
            return self.table

        def forward(self, input_ids):
            raise AssertionError("never called with what it takes")

    assert documents_stay_apart(Refusing()) is False
