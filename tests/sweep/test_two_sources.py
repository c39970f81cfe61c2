"""Two sources without a small_base: a monolingual model beside a large one with its tokenizer.

Stand-ins of the shape of HPLT's models and Gemma 3: a Llama of 24 layers, tied, that reads 2,048
tokens and is stored as a .bin file, beside a Gemma 3 that also sees and reads more; one tokenizer
that puts a BOS, with a special token at its end, and other padding of the two embeddings. It is the
shipped run config that runs them.
"""

from __future__ import annotations

import re
import shutil

import pytest
import torch
import yaml
from tokenizers import processors
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Gemma3Config,
    LlamaConfig,
)

from tests.conftest import SHAPE, byte_tokenizer
from tests.support import task_data
from tests.support.naive import Naive, whole_row
from tests.support.running import ROOT
from tests.support.sweeping import make_lm_eval_quick, written
from trimix_lm_eval import TriMix
from trimix_lm_eval.fusion.policies import parse_grid
from trimix_lm_eval.fusion.weights import SOURCES
from trimix_lm_eval.loading import preflight, run_config, settings
from trimix_lm_eval.sweep import plan, sweep
from trimix_lm_eval.tasklib import belebele, languages, sib200
from trimix_lm_eval.tasklib.catalog import shipped, tasks_of
from trimix_lm_eval.utils import errors, paths

FILE = paths.model_configs_dir() / "gemma3-hplt-2b+4b.yaml"
POINTS = [(i / 8, 1 - i / 8) for i in range(9)]
CONTEXT = 2048


def common_tokenizer():
    """BOS first, as Gemma's puts it, and a special token that no text has at the end."""
    made = byte_tokenizer()
    made.add_tokens(["<image>"], special_tokens=True)
    first = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 256)])
    made.backend_tokenizer.post_processor = first
    return made


def write_small(folder, seed, rows=384):
    config = LlamaConfig(
        **{**SHAPE, "num_key_value_heads": 4, "initializer_range": 0.3},
        **{"vocab_size": rows, "hidden_size": 16, "intermediate_size": 16},
        **{"num_hidden_layers": 24, "tie_word_embeddings": True},
    )
    config.head_dim, config.max_position_embeddings = 4, CONTEXT
    config.architectures = ["LlamaForCausalLM"]
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    config.save_pretrained(folder)
    common_tokenizer().save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return str(folder)


def write_large(folder):
    text = {
        **SHAPE,
        **{"vocab_size": 320, "hidden_size": 24, "intermediate_size": 32, "head_dim": 8},
        **{"num_hidden_layers": 3, "max_position_embeddings": 4 * CONTEXT, "sliding_window": 32},
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    }
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(text_config=text, vision_config=vision | {"intermediate_size": 16})
    torch.manual_seed(3)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    common_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders as the run config names its repositories, without their owners."""
    root = tmp_path_factory.mktemp("models")
    return {
        "google/gemma-3-4b-it": write_large(root / "gemma-3-4b-it"),
        "HPLT/{model}": str(root / "{model}"),
        **{
            code: write_small(root / f"hplt2c_{code}_checkpoints", seed)
            for seed, code in enumerate(("bos", "deu"))
        },
    }


@pytest.fixture(scope="module")
def two(models):
    return {"large_ins": models["google/gemma-3-4b-it"], "small_cpt": models["deu"]}


@pytest.fixture(scope="module")
def naive(two):
    return Naive(two, len(common_tokenizer()))


def fused(naive, ids, alpha, beta):
    return alpha * naive.logits("large_ins", ids) + beta * naive.logits("small_cpt", ids)


def chosen(naive, ids):
    """The point at which a prompt, of which BOS is given, has the lowest perplexity."""
    nll = [float(naive.nll(fused(naive, ids, *p), ids, 1).sum()) for p in POINTS]
    return POINTS[nll.index(min(nll))]


# ------------------------------------------------------------------------ the file


def test_every_language_has_its_model_and_its_tasks():
    run = run_config.load(FILE)
    named = {one["language"]: one["model"] for one in run["sweep"]["languages"]}
    assert tuple(named) == languages.FURTHER and len(set(named.values())) == len(named)
    found = {setting.part: setting for setting in plan.read(FILE).settings}
    assert list(found) == list(named)
    for code, setting in found.items():
        (pattern,) = setting.tasks
        both = code not in ("bos_Latn", "glg_Latn")
        assert {name for name, _ in tasks_of(shipped(), pattern)} == {
            f"trimix_sib200_{code}_ll",
            *([f"trimix_belebele_{code}_ll"] if both else []),
        }
        for variant in setting.variants:
            assert variant.model_args["small_cpt"] == f"HPLT/{named[code]}"
            assert set(variant.policy.sources(variant.settings.sources)) <= {
                "large_ins",
                "small_cpt",
            }


def test_what_is_not_known_of_a_name_is_marked_there_and_in_the_readme():
    lines = FILE.read_text(encoding="utf-8").splitlines()
    marked = [line.split("#")[0].strip() for line in lines if line.endswith("# UNCONFIRMED")]
    codes = [yaml.safe_load(line)[0]["language"] for line in marked]
    readme = FILE.with_name("README.md").read_text(encoding="utf-8")
    assert f"`UNCONFIRMED`: {', '.join(codes)}" in " ".join(readme.split())


# ------------------------------------------------------------------------ a run of it


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    made = {
        "sib200": task_data.write_sib200(folder / "sib200"),
        "belebele": task_data.write_belebele(folder / "belebele"),
    }
    data = made["sib200"] / "data"
    shutil.copytree(data / "deu_Latn", data / "bos_Latn")
    return {name: str(place) for name, place in made.items()}


def test_the_file_runs(models, naive, benchmarks, tmp_path, monkeypatch):
    """In two languages, one of which Belebele lacks; each prompt's point is the naive one."""
    make_lm_eval_quick(monkeypatch)
    monkeypatch.setattr(sib200, "_ROWS", task_data.SIB200_SIZES)
    monkeypatch.setattr(belebele, "_ROWS", task_data.BELEBELE_SIZE)
    run = run_config.load(FILE)
    block, wanted = run["sweep"], ("bos_Latn", "deu_Latn")
    del block["grid"]  # the policy has it, too
    block["languages"] = [one for one in block["languages"] if one["language"] in wanted]
    arguments = {key: models.get(value, value) for key, value in run["model_args"].items()}
    run |= {
        "model_args": {**arguments, "dtype": "float32"},
        "include_path": str(paths.tasks_dir()),
        "metadata": {"data_dir": benchmarks},
        **{"limit": 1, "device": "cpu", "output_path": str(tmp_path)},
    }
    results = sweep(run)
    tasks = {p.relative_to(tmp_path).parts[0]: set(written(p)["configs"]) for p in results}
    assert tasks == {
        "bos_Latn": {"trimix_sib200_bos_Latn_ll"},
        "deu_Latn": {"trimix_sib200_deu_Latn_ll", "trimix_belebele_deu_Latn_ll"},
    }
    ppl = results[1]
    encode = common_tokenizer().encode
    for sample in written(ppl)["samples"]["trimix_belebele_deu_Latn_ll"]:
        context, said = sample["arguments"]["gen_args_0"].values()
        ids, more = encode(context), encode(said, add_special_tokens=False)
        point = chosen(naive, ids)
        nll = naive.nll(fused(naive, ids + more, *point), ids + more, len(ids))
        assert float(sample["resps"][0][0][0]) == pytest.approx(-float(nll.sum()), rel=1e-4)


# ------------------------------------------------------------------------ a long prompt


def test_the_shorter_context_is_that_of_both(two, naive, caplog, monkeypatch):
    """A prompt beyond it is cut from the left, told once, and the text goes on from its end."""
    monkeypatch.setattr(errors, "_warned", set())
    model = TriMix.from_pretrained(**two, policy="ppl", grid="simplex:9", dtype="float32")
    assert model.max_length == CONTEXT and "small_base" not in model.fuser.ensemble.names
    assert "context: 2,048 tokens (large_ins 8,192, small_cpt 2,048)" in model.report.lines()
    text = "".join(f"{i} rain in the barn. " for i in range(150))
    whole = model.tokenizer.encode(text)
    assert len(whole) > CONTEXT
    (made,) = model.complete([text], max_new_tokens=2)
    kept = whole[len(whole) - (CONTEXT - 2) :]
    point = chosen(naive, kept)
    assert tuple(made.choice.weights[:2]) == point
    ids = list(kept)
    for _ in range(2):
        ids.append(int(fused(naive, ids, *point)[-1].argmax()))
    assert made.text == model.tokenizer.decode(ids[-2:])
    assert "context length of 2048 tokens: their contexts are cut from the left" in caplog.text
    whole_row.cache_clear()


# ------------------------------------------------------------------------ the vocabulary


def test_no_row_for_the_last_special_token_is_no_obstacle(two, tmp_path, caplog, monkeypatch):
    """The rows of HPLT's embeddings are not known; the tokenizer's last token stands for images."""
    monkeypatch.setattr(errors, "_warned", set())
    known = len(common_tokenizer())
    small = write_small(tmp_path / "small", 5, rows=known - 1)
    asked = settings.parse({**two, "small_cpt": small, "policy": "ppl", "grid": "simplex:9"})
    assert preflight.check(asked, tuple(two)).vocab_size == known - 1
    assert "1 special token(s) of large_ins" in caplog.text and "have no row" in caplog.text


# ------------------------------------------------------------------------ a second small_cpt


THIRDS = [(i / 4, j / 4, 1 - (i + j) / 4) for i in range(5) for j in range(5 - i)]


def written_as(large, first, second):
    """Weights that sum to 1, as the point at which the second small_cpt is called large_base."""
    return f"{large:g}:{first:g}:{large + second:g}"


def test_the_grid_on_the_page_is_a_triangle():
    page = (ROOT / "docs" / "policies.md").read_text(encoding="utf-8")
    (grid,) = re.findall(r"^    grid=(0:1:0;\S+)$", page, flags=re.M)
    found = [point.by_source() for point in parse_grid(grid)]
    assert [[one[name] for name in SOURCES] for one in found] == [
        *([0, 1, 0, 0], [0, 0, 0, 1], [0, 0.5, 0, 0.5], [0.5, 0.5, 0, 0], [0.5, 0, 0, 0.5]),
        *([0.5, 0.25, 0, 0.25], [1, 0, 0, 0]),
    ]


@pytest.fixture(scope="module")
def three(models, two, naive):
    """Two small_cpt, and what fuses them plainly: each source times its weight."""
    second = Naive({"large_base": models["bos"]}, naive.vocab_size)

    def plainly(ids, large, first, second_weight):
        others = fused(naive, ids, large, first)
        return others + second_weight * second.logits("large_base", ids)

    return {**two, "large_base": models["bos"]}, plainly


def test_a_second_small_cpt_has_a_weight_of_its_own(three, naive):
    """Under the name of large_base; where all sum to 1, there need be no small_base."""
    folders, plainly = three
    grid = ";".join(written_as(*weights) for weights in THIRDS)
    model = TriMix.from_pretrained(**folders, policy="ppl", grid=grid, dtype="float32")
    assert model.fuser.ensemble.names == tuple(folders)
    best = set()
    for text, more in (("The hen is in", " the barn"), ("0123", "456"), ("སྐད་ཡིག", "སྐད")):
        ids, added = model.codec.encode(text), model.codec.encode(more, False)
        nll = [float(naive.nll(plainly(ids, *w), ids, 1).sum()) for w in THIRDS]
        point = THIRDS[nll.index(min(nll))]
        best.add(point)
        (score,) = model.loglikelihood([(text, more)])
        rows = plainly(ids + added, *point)
        expected = -float(naive.nll(rows, ids + added, len(ids)).sum())
        assert score.log_likelihood == pytest.approx(expected, rel=1e-4)
        given = score.choice.weights.by_source()
        assert given == pytest.approx(dict(zip(folders, point, strict=True)) | {"small_base": 0})
        (made,) = model.complete([text], max_new_tokens=3)
        for _ in range(3):
            ids.append(int(plainly(ids, *point)[-1].argmax()))
        assert made.text == model.tokenizer.decode(ids[-3:])
    assert len(best) > 1
