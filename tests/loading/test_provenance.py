"""What makes two runs different, and what does not."""

from __future__ import annotations

import json
import os

import pytest
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from trimix_lm_eval.loading import provenance
from trimix_lm_eval.loading.provenance import compared

NOW = {
    "sources": {"large_ins": {"path": "demo/large_ins", "digest": "ab"}},
    "policy": {"name": "ppl", "grid": [[0.1, 0.9]], "refine": None, "label": "x", "cost": "y"},
}


@pytest.mark.parametrize(
    "before",
    [
        {**NOW, "sources": {"large_ins": {"path": "/elsewhere", "digest": "ab"}}},
        # As version 0.1.0 first recorded it: caches and sweeps of then go on.
        {**NOW, "policy": {"name": "ppl", "grid": [[0.1, 0.9]], "optimum": "grid"}},
    ],
)
def test_what_no_number_depends_on(before):
    assert list(compared(before, NOW)) == list(compared(NOW, before)) == []


@pytest.mark.parametrize(
    ("policy", "named"),
    [
        ({"name": "ppl", "grid": [[0.1, 0.9]], "optimum": "newton"}, ["policy.optimum"]),
        ({**NOW["policy"], "refine": "quadratic"}, ["policy.refine"]),
        ({**NOW["policy"], "grid": [[0.3, 0.9]], "name": "ent"}, ["policy.name", "policy.grid"]),
    ],
)
def test_what_numbers_depend_on(policy, named):
    differences = list(compared({**NOW, "policy": policy}, NOW))
    assert [line.split(" ")[0] for line in differences] == named


def test_a_long_value_is_cut_unless_the_difference_would_be_cut_out():
    grid = [[round(0.001 * n, 3), 0.9, None] for n in range(36)]
    (cut,) = compared({"grid": grid}, {"grid": None})
    assert cut.startswith("grid ([[0.0, 0.9, None], ") and cut.endswith("None]] against None)")
    assert len(cut) < 110
    other = [[0.7, 0.9, None] if n == 9 else point for n, point in enumerate(grid)]
    (whole,) = compared({"grid": grid}, {"grid": other})
    assert whole == f"grid ({grid} against {other})"


def test_what_is_said_of_the_whole_comes_first():
    one = {"sources": {"large_ins": {"digest": "aa"}}}
    two = {"sources": {"large_ins": {"digest": "bb"}}, "fusion": "sequence"}
    for a, b in ((one, two), (two, one)):
        first, second = compared(a, b)
        assert first.startswith("fusion (") and second.startswith("sources.large_ins.digest (")


@pytest.mark.parametrize("name", ["path", "label", "honesty", "cost", "differing"])
def test_a_task_may_be_called_anything(name):
    before, after = ({"tasks": {name: {"content": digest}}} for digest in ("aa", "bb"))
    assert list(compared(before, after)) == [f"tasks.{name}.content (aa against bb)"]


def test_every_byte_of_a_model_counts(tmp_path):
    """Same names, sizes and times: a weight in the middle of a large file, code of its own."""
    size = 20 * 2**20
    files = {
        "model.safetensors": bytes(size),
        "modeling_own.py": b"scale = 1",
        "merges.txt": b"a b",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "README.md").write_text("no number depends on it")
    first = provenance.digest(tmp_path)
    (tmp_path / "README.md").write_text("nor on this")
    assert provenance.digest(tmp_path) == first
    found = {first}
    for name, content in files.items():
        file, stat = tmp_path / name, (tmp_path / name).stat()
        with file.open("r+b") as stream:
            stream.seek(len(content) // 2 + 1)
            stream.write(b"2")
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert file.stat().st_size == len(content)
        found.add(provenance.digest(tmp_path))
    assert len(found) == 4


def test_how_a_tokenizer_cuts_counts(pico):
    """Tokens and ids are the same in all of these."""
    folder = pico("llama")["small_cpt"]
    made = [AutoTokenizer.from_pretrained(folder) for _ in range(6)]
    same, merges, spaces, marks, ends, used = made
    state = json.loads(merges.backend_tokenizer.to_str())
    state["model"]["merges"] = state["model"]["merges"][:-1]
    merges = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), bos_token="<s>", eos_token="</s>"
    )
    spaces.backend_tokenizer.normalizer = normalizers.Strip()
    marks.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    ends.eos_token = "<pad>"
    used(["a b", "c"], padding=True, truncation=True, max_length=5)
    first = provenance.vocabulary_digest(same)
    assert provenance.vocabulary_digest(used) == first
    others = {provenance.vocabulary_digest(t) for t in (merges, spaces, marks, ends)}
    assert len(others | {first}) == 5
