"""Pages and tables go to other people: they show no path of the machine that made them."""

import copy
import json
from types import SimpleNamespace

import pytest

from tests.analysis.test_export import TASK, submittable
from tests.support.results_files import trimix_config, write_run
from trimix_lm_eval import cli
from trimix_lm_eval.analysis.explain import explain, page
from trimix_lm_eval.engine.sampler import SamplingParams
from trimix_lm_eval.fusion import policies
from trimix_lm_eval.fusion.config import FusionConfig
from trimix_lm_eval.loading import provenance, settings


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A home with models and results in it, and a current folder beside it."""
    pytest.importorskip("matplotlib", reason="pip install 'trimix-lm-eval[report]'")
    home, here = tmp_path / "home" / "somebody", tmp_path / "work" / "here"
    here.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    told = copy.deepcopy(trimix_config("ppl"))
    for role, folder in (("large_ins", home / "models" / "large"), ("small_cpt", here / "small")):
        told["sources"][role].update(path=str(folder), commit=None, digest="ab" * 8)
    demo = f"{home}/src/trimix_lm_eval/demo/small_base"
    told["sources"]["small_base"].update(path=demo, commit=None, digest="cd" * 8)
    told["data"] = {"a.zip": {"from": f"{home}/data/a.zip", "sha256": "0" * 64}}
    told["finish_reasons"] = {TASK: {"stop": 1, "length": 1}}
    submittable(home / "results" / "demo", trimix=told)
    submittable(here / "results" / "other", trimix={**told, "policy": {"name": "ent"}})
    return home, here


def texts(folder):
    """All that was written, by name."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".png")
    return {path.name: path.read_text(encoding="utf-8") for path in files}


def test_no_page_or_table_shows_where_it_was_made(machine):
    home, here = machine
    other = write_run(home / "results" / "hf", {"t": [1.0, 0.0]}, model="hf")
    content = json.loads(other.read_text())
    content["model_name"] = str(home / "models" / "large")
    content["config"]["model_args"] = {"tokenizer": f"{home}/tok", "peft": f"{here}/lora"}
    other.write_text(json.dumps(content))
    (home / "results" / "results_broken.json").write_text("{")

    every = [str(home / "results"), str(here / "results")]
    assert cli.main(["report", *every, "--output", str(here / "report")]) == 0
    mine = str(here / "results")
    for to in ("csv", "card", "model-index"):
        assert cli.main(["export", mine, "--to", to, "--output", str(here / f"to_{to}")]) == 0
    assert cli.main(["leaderboard", mine, "--output", str(here / "site")]) == 0
    folders = [here / "report", *here.glob("to_*"), here / "site"]
    made = {f"{it.name}/{name}": text for it in folders for name, text in texts(it).items()}
    assert len(made) >= 8
    for name, text in made.items():
        assert str(home) not in text and str(here) not in text, name

    assert TASK in made["report/endings.csv"]
    told = made["report/report.html"]
    for shown in ("…/models/large", "<code>small</code>", "demo/small_base", "…/data/a.zip"):
        assert shown in told, shown
    assert "results/other/results_" in told and "/results/demo/results_" in told
    assert "…/models/large (peft=lora, tokenizer=…/somebody/tok)" in made["report/scores.csv"]


def test_two_folders_that_look_the_same_are_two_models(tmp_path):
    pytest.importorskip("matplotlib", reason="pip install 'trimix-lm-eval[report]'")
    for number in (1, 2):
        path = write_run(tmp_path / str(number), {"t": [1.0, 0.0]}, model="hf")
        name = f"/disk{number}/models/large"
        path.write_text(json.dumps({**json.loads(path.read_text()), "model_name": name}))
    assert cli.main(["report", str(tmp_path), "--output", str(tmp_path / "out")]) == 0
    told = (tmp_path / "out" / "scores.csv").read_text()
    assert "hf: …/models/large," in told and "hf: …/models/large (2)," in told
    assert not any("superseded" in text for text in texts(tmp_path / "out").values())


def test_explanations_show_none_either(trio, machine):
    home, here = machine
    model = trio("llama").weighted("fixed", speculative="off", alpha=0.3, beta=0.9)
    it = explain(model, "The hen", SamplingParams(max_new_tokens=2))
    described = model.describe()
    folders = (home / "models" / "large", here / "small", home / "trimix_lm_eval/demo/small_base")
    for source, folder in zip(described["sources"].values(), folders, strict=True):
        source["path"] = str(folder)
    about = page.About("A text", [], described)
    for text in (page.render(about, [it]), page.as_json(about, [it])):
        assert str(home) not in text and str(here) not in text
        assert all(one in text for one in ("…/models/large", "small", "demo/small_base"))
    assert described["sources"]["large_ins"]["path"] == str(folders[0]), "it is not ours to change"


def test_results_name_the_demo_and_not_its_folder():
    asked = settings.parse({"pretrained": "demo", "policy": "ppl"})
    config = FusionConfig(policies.build("ppl"), None, "large_ins")
    dtypes = dict.fromkeys(asked.sources, "float32")
    tokenizer = SimpleNamespace(
        get_vocab=dict, encode=lambda *_, **__: [], bos_token_id=None, eos_token_id=0
    )
    told = provenance.describe(asked, config, {}, dtypes, 16, tokenizer)
    assert [it["path"] for it in told["sources"].values()] == [
        "demo/large_ins",
        "demo/small_cpt",
        "demo/small_base",
    ]
