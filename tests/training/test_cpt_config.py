"""What a config of `trimix cpt` stands for, and every way in which it can be wrong."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.support.running import ROOT
from trimix_lm_eval.training.cpt import config as configs
from trimix_lm_eval.training.cpt.config import OPTIONS, Config
from trimix_lm_eval.training.cpt.plan import Mixture, english_rows, plan
from trimix_lm_eval.training.cpt.texts import TextPlace
from trimix_lm_eval.training.new_language.recipe import suited
from trimix_lm_eval.utils import paths
from trimix_lm_eval.utils.errors import TrimixError

BASE = {"base": "demo", "output": "out", "text": "a.txt"}


def read(**more) -> Config:
    return configs.read({**BASE, **more})


# ---------------------------------------------------------------- the YAML


def test_the_defaults_are_the_recipe():
    config = read()
    assert (config.learning_rate, config.min_learning_rate) == (3e-5, 1e-6)
    assert (config.sequence_length, config.batch_tokens) == (2048, 2048 * 512)
    assert (config.ratio, config.epochs) == (4, 1)
    assert config.base_path == str(paths.demo_dir() / "small_base")
    assert config.text == (TextPlace("a.txt"),) and config.output == Path("out").resolve()


def test_the_example_of_the_docs_is_the_recipe():
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```yaml\n(base: .*?)^```", page, flags=re.M | re.S)
    found, usual = configs.read(yaml.safe_load(example)), read()
    own = dict.fromkeys(("base", "output", "text", "english", "test"))
    assert {**found.plain(), **own} == {**usual.plain(), **own}


def test_every_key_is_declared_with_its_type_and_help():
    assert [one.name for one in OPTIONS] == list(Config.__dataclass_fields__)
    for one in OPTIONS:
        assert one.type and one.help.endswith("."), one.name


def test_a_file_is_read_as_people_write_it(tmp_path):
    text = """
base: demo
output: out
text:
  - a.txt
  - {hub: owner/name, config: ug, field: content, streaming: false}
learning_rate: 3e-4      # YAML takes this for a text
ratio: '4:1'
held_out: held.jsonl
license:
report_to: none
"""
    (tmp_path / "cpt.yaml").write_text(text)
    config = configs.read(tmp_path / "cpt.yaml")
    assert config.learning_rate == 3e-4 and config.ratio == 4
    assert config.held_out == Path("held.jsonl") and config.report_to == ()
    assert config.text[1] == TextPlace(
        "owner/name", hub=True, config="ug", field="content", streaming=False
    )
    again = yaml.safe_load(yaml.safe_dump(config.plain()))
    assert configs.read(again) == config


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"learning_rat": 1}, "Did you mean 'learning_rate'"),
        ({"base": None}, "names no base"),
        ({"text": []}, "names no text"),
        ({"text": [{"hub": "a/b", "slit": "train"}]}, "Did you mean 'split'"),
        ({"text": [{"file": "a", "hub": "a/b"}]}, "text has .* in it"),
        ({"text": [{"hub": "a/b", "split": 3}]}, "split of a place in text is 3"),
        ({"text": [{"hub": None}]}, "hub of a place in text is None"),
        ({"text": [{"hub": "a/b", "streaming": "no"}]}, "streaming of a place in text is 'no'"),
        ({"text": [7]}, "text has 7 in it"),
        ({"epochs": 0}, "epochs=0 is out of range"),
        ({"epochs": "many"}, "epochs='many' is not a number"),
        ({"epochs": True}, "epochs=True is not a number"),
        ({"steps": 1.5}, "steps=1.5 is not a whole number"),
        ({"seed": True}, "seed=True is not a whole number"),
        ({"nfc": "no"}, "nfc='no' is neither true nor false"),
        ({"language": False}, "language=False is not a text"),
        ({"seed": 2**32}, "from 0 to 4294967295"),
        ({"learning_rate": 0, "min_learning_rate": 0}, "learning_rate=0 is out of range"),
        ({"ratio": 241}, "from 0.01 to 100: 4, or 4:1"),
        ({"ratio": "a:b"}, "ratio='a:b'"),
        ({"held_out": 0.9}, "from 1e-06 to 0.5"),
        ({"precision": "fp16"}, "accepted: auto, bf16, fp32"),
        ({"report_to": ["tensorbord"]}, "Did you mean 'tensorboard'"),
        ({"min_learning_rate": 1e-3}, "more than learning_rate"),
        ({"epochs": 1e308}, "from 1e-06 to 1e\\+06"),
        ({"epochs": float("nan")}, "epochs=nan is not a number"),
        ({"steps": 10**400}, "from 1 to 1000000000"),
        ({"batch_tokens": 2**63}, "from 8 to 10000000000"),
        ({"evaluations": float("inf")}, "evaluations=inf is not a whole number"),
        ({"max_bytes": 1 << 20_000}, "a number of thousands of digits"),
        ({"ratio": "1e999999999"}, "'1e999999999' is not a ratio"),
        ({"ratio": [1, 2]}, "is not a ratio"),
        ({"ratio": float("nan")}, "ratio=nan is not a ratio"),
        ({"held_out": "nan"}, "held_out='nan' is not a number"),
        ({"held_out": "9e-1"}, "held_out='9e-1' is out of range"),
        ({"held_out": [0.1]}, r"held_out=\[0.1\] is not a number"),
        ({"text": "a\0b"}, "has '\\\\x00' in it"),
        ({"text": {"file": "a.txt", "field": "b\ud800"}}, "field of a place in text="),
        ({"language": "swh\udcff"}, "characters in UTF-8"),
        ({"license": "mit\nbase: other"}, "license=.* has '\\\\n' in it"),
        ({"output": "~nosuchuser/out"}, "is no path here: Could not determine home"),
        ({"test": "x" * 300}, "test: xx.* is no path here: File name too long"),
        ({"base_revision": [1]}, "base_revision=.* is not a text"),
    ],
)
def test_mistakes_are_named(changed, message):
    with pytest.raises(TrimixError, match=message):
        read(**changed)


@pytest.mark.parametrize("written", ["5e-2", "0.05", "5.e-2", ".05", "'5E-2'"])
def test_a_share_is_a_number_however_it_is_written(tmp_path, written):
    (tmp_path / "c.yaml").write_text(f"base: demo\noutput: o\ntext: a\nheld_out: {written}\n")
    assert configs.read(tmp_path / "c.yaml").held_out == 0.05
    assert read(held_out="./5e-2").held_out == Path("5e-2")


def test_a_folder_that_is_gone_is_named(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(TrimixError, match="output: out leads nowhere"):
        read()


def test_the_largest_batch_is_planned_at_once():
    made = plan(read(batch_tokens=10**10, micro_batch=10**5, epochs=1e6), 8, 10**6, 1)
    assert made.micro * made.accumulation == made.batch == 10**10 // 8


@pytest.mark.parametrize(("written", "ratio"), [("1:1", 1), ("4:1", 4), ("1:30", Fraction(1, 30))])
def test_a_ratio_is_no_time_of_day(tmp_path, written, ratio):
    (tmp_path / "c.yaml").write_text(f"base: demo\noutput: o\ntext: a\nratio: {written}\nseed: 7\n")
    config = configs.read(tmp_path / "c.yaml")
    assert config.ratio == ratio and config.seed == 7


def test_files_that_are_no_config(tmp_path):
    wrong = (("- a\n", "no mapping"), ("a: [\n", "not YAML"), ("a: 2026-13-01\n", "not YAML"))
    for content, message in wrong:
        (tmp_path / "c.yaml").write_text(content)
        with pytest.raises(TrimixError, match=message):
            configs.read(tmp_path / "c.yaml")
    with pytest.raises(TrimixError, match="cannot be read"):
        configs.read(tmp_path / "gone.yaml")


# ---------------------------------------------------------------- rows and batches


@given(
    rows=st.integers(1, 60),
    english=st.integers(1, 30),
    ratio=st.fractions(Fraction(1, 4), 8, max_denominator=9),
    seed=st.integers(0, 9),
)
def test_the_ratio_is_exact_over_every_epoch(rows, english, ratio, seed):
    mixture = Mixture(rows, english, ratio, seed)
    expected = english_rows(rows, ratio)
    read_english = []
    for epoch in range(3):
        start = epoch * mixture.per_epoch
        found = [mixture[start + i] for i in range(mixture.per_epoch)]
        assert sorted(r.number for r in found if not r.english) == list(range(rows))
        assert sum(r.english for r in found) == expected
        for n in range(mixture.per_epoch + 1):
            assert sum(r.english for r in found[:n]) == n * expected // mixture.per_epoch
        read_english += [r.number for r in found if r.english]
    for i in range(0, len(read_english) - english + 1, english):
        assert sorted(read_english[i : i + english]) == list(range(english)), "none left out"


def test_a_place_gives_one_row_whatever_was_asked_before():
    there = [Mixture(7, 3, Fraction(2), 5)[i] for i in range(40)]
    back = Mixture(7, 3, Fraction(2), 5)
    assert [back[i] for i in reversed(range(40))] == there[::-1]
    other = Mixture(7, 3, Fraction(2), 6)
    assert [other[i] for i in range(40)] != there
    alone = Mixture(7, 0, Fraction(2), 5)
    assert sorted(alone[i].number for i in range(7)) == list(range(7))


@given(
    tokens=st.integers(8, 5000),
    length=st.integers(8, 64),
    micro=st.integers(1, 9),
    world=st.integers(1, 5),
    rows=st.integers(1, 500),
)
def test_batches_are_whole_whatever_the_processes(tokens, length, micro, world, rows):
    config = read(batch_tokens=tokens, micro_batch=micro)
    made = plan(config, length, rows, world)
    assert made.micro <= micro
    assert made.micro * made.accumulation * world == made.batch
    wanted = max(1, tokens // length)
    assert wanted <= made.batch < wanted + world
    assert made.steps * made.batch >= rows > (made.steps - 1) * made.batch


def test_steps_take_the_place_of_epochs():
    made = plan(read(steps=7, epochs=3.0, evaluations=2), 8, 100, 1)
    assert made.steps == 7 and made.every == 4


def test_the_rule_of_thumb():
    large = suited(600_000_000, 7_000_000_000, 4096)
    assert large == (2048, 2**20, 1, 3e-5, 1e-6, 0.01), "the recipe, where it was made for"
    small = suited(200_000, 1_000_000, 1024)
    assert small.sequence_length == 1024 and small.epochs == 4
    assert small.batch_tokens == 1024, "one row: an epoch has fewer steps than it should"
    assert small.learning_rate == 2e-3
    middle = suited(5_000_000, 1_500_000_000, 32_768)
    assert middle.batch_tokens == 2**13 and 5_000_000 / 2**13 >= 400
    assert middle.epochs == 4 and 3e-5 < middle.learning_rate < 1e-4
    assert suited(10, None, 512).batch_tokens == 512
