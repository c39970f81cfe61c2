"""`trimix compare` from an idea to the table: what it runs, and that it goes on with it."""

import csv
import sys

import pytest
import yaml

from tests.support.sweeping import config, make_lm_eval_quick, write_tasks
from trimix_lm_eval import cli
from trimix_lm_eval.llm import TriMix

IDEA = '''
import dataclasses
from trimix_lm_eval.fusion.policies import Policy
from trimix_lm_eval.fusion.weights import Weights


@dataclasses.dataclass(frozen=True)
class Half(Policy):
    """Half of each: the point (1/2, 1/2)."""

    name = "half"
    label = "Half and half"
    honesty = "label_free"
    cost = "nothing"

    def points(self):
        return (Weights(0.5, 0.5),)
'''
GRID = ["0.1:0.9", "0.9:0.1", "0.5:0.5", "0.3:0.3"]


@pytest.fixture
def place(pico, tmp_path, monkeypatch):
    """A folder with an idea and a task; the arguments that name the models."""
    make_lm_eval_quick(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # a file's folder is put there
    write_tasks(tmp_path / "tasks", ["choice", "rolling"])
    (tmp_path / "idea_of_mine.py").write_text(IDEA, encoding="utf-8")
    return config(pico("llama"), tmp_path / "tasks", tmp_path / "results", tasks=["choice"])


def rows(folder):
    with (folder / "compare" / "compare.csv").open(encoding="utf-8") as stream:
        return {(row["policy"], row["column"]): row for row in csv.DictReader(stream)}


def test_the_baseline_is_run_though_nobody_names_it(place, tmp_path, capsys):
    given = [f"{key}={value}" for key, value in place["model_args"].items()]
    command = ["compare", "--model_args", *given, "--tasks", "choice", "--include_path", "tasks"]
    command += ["--limit", "5", "--policies", "small_cpt", "--baseline", "large_ins"]
    assert cli.main(command) == 0, capsys.readouterr().err
    assert {name for name, _ in rows(tmp_path)} == {"large_ins", "small_cpt"}


def test_sequences_are_compared_by_the_points_that_they_take(place, tmp_path, capsys):
    given = [f"{key}={value}" for key, value in place["model_args"].items()]
    command = ["compare", "--model_args", *given, "fusion=sequence", "--tasks", "choice"]
    command += ["--include_path", "tasks", "--limit", "5"]
    assert cli.main(command) == 0, capsys.readouterr().err
    names = {name for name, _ in rows(tmp_path)}
    assert {name.split(" (")[0] for name in names} == {
        "fixed 0.1:0.9",
        "large_ins",
        "small_cpt",
        "small_base",
        "proxy_tuning",
    }


def test_an_idea_in_a_file_is_compared_by_one_command(place, tmp_path, capsys):
    given = [f"{key}={value}" for key, value in place["model_args"].items()]
    command = ["compare", "--model_args", *given, "--tasks", "choice,rolling"]
    command += ["--include_path", "tasks", "--limit", "5", "--grid", ";".join(GRID)]
    command += ["--policies", "ppl,small_cpt", "./idea_of_mine.py:Half"]
    assert cli.main(command) == 0, capsys.readouterr().err
    found = rows(tmp_path)
    assert {name for name, _ in found} == {"ppl", "small_cpt", "half", "oracle by task"}
    assert found["half", "choice"]["n"] == "5" and found["half", "choice"]["ranked"] == "True"
    assert float(found["half", "choice"]["cost"]) > float(found["small_cpt", "choice"]["cost"])
    out = capsys.readouterr().out
    assert "| Half and half " in out and "°" in out, "five documents are not tested"
    assert "* Half and half: nothing" in (tmp_path / "compare" / "compare.md").read_text("utf-8")


def test_a_sweep_is_run_and_then_gone_on_with(place, tmp_path, capsys, monkeypatch):
    swept = {**place, "sweep": {"policies": ["ppl", "ent"]}}
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(swept), encoding="utf-8")
    assert cli.main(["compare", "sweep.yaml"]) == 0
    before = rows(tmp_path)
    monkeypatch.setattr(TriMix, "load_many", lambda *_: pytest.fail("models are loaded again"))
    assert cli.main(["compare", "sweep.yaml"]) == 0
    assert rows(tmp_path) == before and {name for name, _ in before} == {"ppl", "ent"}
    assert "2 of 2 results are there already" in capsys.readouterr().err
