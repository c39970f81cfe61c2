"""Families of models, one of each kind: everything asked of them is as the naive reference has it.

All of them are examined by a command, which writes the table of docs/families.md.
"""

from __future__ import annotations

import re

import pytest
from transformers import cache_utils

from tests.conftest import byte_tokenizer
from tests.support import families

#: Old versions of transformers have no layers with states, and nothing is kept between tokens.
HAS_STATES = hasattr(cache_utils, "LinearAttentionAndFullAttentionLayer")
#: What the large models of a row remember, and whether they go on by several tokens at once.
KINDS = {
    "qwen3_5_text": ("keys and states", True),
    "qwen3_next": ("keys and states", True),
    "falcon_h1": ("keys and states", True),
    "mamba2": ("states", True),
    "jamba": ("keys and states", False),
    "lfm2": ("keys and states", True),
    "qwen3_5_text+llama": ("keys and states", True),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_family_of_each_kind_is_exact(name, tmp_path):
    if not (HAS_STATES and families.known(name)):
        pytest.skip("not in this version of transformers")
    three = families.built(name, tmp_path, byte_tokenizer())
    found = families.examine(three, quick=True)
    assert found.right, found
    large = found.runners[0]
    assert (families.remembers(large), families.several(large) == "yes") == KINDS[name]


def test_what_is_not_the_naive_reference_is_found(tmp_path):
    three = families.built("llama", tmp_path, byte_tokenizer())
    for weight in three.naive.models["small_cpt"].parameters():
        weight.data *= 1.2
    found = families.examine(three, quick=True)
    assert found.off > found.allowed and found.texts_differ and not found.right


def table(columns):
    page = families.PAGE.read_text(encoding="utf-8")
    head = f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}\n"
    assert page.count(head) == 1
    rows = page.partition(head)[2].partition("\n\n")[0].splitlines()
    return [row.strip("| ").split(" | ") for row in rows]


def test_the_page_tells_of_all_families():
    rows = table(families.COLUMNS)
    assert {len(row) for row in rows} == {len(families.COLUMNS)}
    assert [row[1] for row in rows] == [f"`{x}`" for x in (*families.FAMILIES, *families.MIXED)]
    refused = table(families.REFUSED_COLUMNS)
    assert [row[1] for row in refused] == [f"`{name}`" for name in families.REFUSED]


def test_the_page_tells_the_command_that_writes_it():
    page = families.PAGE.read_text(encoding="utf-8")
    command = f"python -m {families.__name__}"
    assert f"`{command}` writes both tables" in page and command in families.__doc__
    (some,) = re.findall(r"```sh\n(.*?)\n```", page)
    assert some.removeprefix(command).split()[0] in families.FAMILIES
