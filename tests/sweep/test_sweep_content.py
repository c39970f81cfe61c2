"""Whatever a task's results depend on is compared by content: a rerun notices that it changed."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
import yaml

from tests.support.sweeping import CHOICE, DOCS, FREE, config, make_lm_eval_quick
from trimix_lm_eval.loading.provenance import compared
from trimix_lm_eval.sweep import plan, run, sweep
from trimix_lm_eval.utils.distributed import DistributedEnv
from trimix_lm_eval.utils.errors import TrimixError

UTILS = """
import helper
from pack.inner import word

def text(doc):
    return helper.said(doc) + word()

def processed(docs):
    return docs
"""
HALF = '''
import dataclasses
from others_share import SHARE
from trimix_lm_eval.fusion.policies import Policy
from trimix_lm_eval.fusion.weights import Weights

@dataclasses.dataclass(frozen=True)
class Half(Policy):
    """Half of each."""

    name = "half"
    honesty = "label_free"

    def points(self):
        return (Weights(SHARE, 1 - SHARE),)
'''
HELPER = "def said(doc):\n    import lazily\n    return doc['q'] + lazily.END\n"


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    make_lm_eval_quick(monkeypatch)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def identity(pico, tmp_path):
    """What a variant's numbers on a task depend on, as of now."""
    trio = pico("llama")

    def identify(task, policy="ppl", **more):
        folder = tmp_path / "tasks"
        folder.mkdir(exist_ok=True)
        (folder / "t.yaml").write_text(yaml.safe_dump({"task": "t", **task}), encoding="utf-8")
        text = (folder / "t.yaml").read_text(encoding="utf-8")
        (folder / "t.yaml").write_text(text.replace("'!function ", "!function '"), encoding="utf-8")
        asked = config(trio, folder, tmp_path / "out", **{"tasks": ["t"], **more})
        planned = plan.read({**asked, "sweep": {"policies": [policy]}})
        (work,) = run._looked_at(planned, DistributedEnv())
        return work.identities[0]

    return identify


def changed(before, after):
    """The keys of a task that two identities differ in."""
    mine, theirs = before["tasks"]["t"], after["tasks"]["t"]
    assert {**before, "tasks": 0, "groups": 0} == {**after, "tasks": 0, "groups": 0}
    return [key for key in mine if mine[key] != theirs[key]]


def write(file: Path, docs) -> str:
    """Documents in the format that a file's name tells."""
    file.parent.mkdir(parents=True, exist_ok=True)
    made = datasets.Dataset.from_list(docs)
    if file.suffix == ".parquet":
        made.to_parquet(file)
    elif file.suffix == ".csv":
        made.to_csv(file)
    elif file.suffix == ".txt":
        file.write_text("".join(doc["q"] + "\n" for doc in docs), encoding="utf-8")
    else:
        file.write_text("".join(json.dumps(doc) + "\n" for doc in docs), encoding="utf-8")
    return str(file)


OTHER = [{**doc, "q": doc["q"].replace("number", "numeral")} for doc in DOCS]
LAST = [*DOCS[:-1], {**DOCS[-1], "a": (DOCS[-1]["a"] + 1) % 3}]
PLACES = {
    "json": lambda file: {"dataset_path": "json", "dataset_kwargs": {"data_files": file}},
    "list": lambda file: {"dataset_path": "json", "dataset_kwargs": {"data_files": [file]}},
    "glob": lambda file: {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"train": str(Path(file).parent / "*.jsonl")}},
    },
    "csv": lambda file: {"dataset_path": "csv", "dataset_kwargs": {"data_files": file}},
    "parquet": lambda file: {"dataset_path": "parquet", "dataset_kwargs": {"data_files": file}},
    "text": lambda file: {"dataset_path": "text", "dataset_kwargs": {"data_files": file}},
    "folder": lambda file: {"dataset_path": str(Path(file).parent)},
}
SUFFIX = {"csv": ".csv", "parquet": ".parquet", "text": ".txt"}


@pytest.mark.parametrize("kind", PLACES)
def test_data_that_changed_while_its_length_stayed(identity, tmp_path, kind):
    """However a task names its data, and whichever of its documents it is."""
    file = tmp_path / "data" / f"docs{SUFFIX.get(kind, '.jsonl')}"
    task = {
        "output_type": "loglikelihood_rolling",
        "test_split": "train",
        "doc_to_text": "",
        "doc_to_target": "{{text}}" if kind == "text" else "{{q}}",
        "metric_list": [{"metric": "bits_per_byte"}],
        **PLACES[kind](write(file, DOCS)),
    }
    before = identity(task)
    assert before == identity(task)
    write(file, OTHER if kind == "text" else LAST)
    assert changed(before, identity(task)) == ["content"]


def test_only_what_is_evaluated_counts(identity, tmp_path):
    file = tmp_path / "docs.jsonl"
    task = {**CHOICE, "test_split": "train", **PLACES["json"](write(file, DOCS))}
    asked = [{}, {"limit": 3}, {"samples": {"t": [1, 6]}}, {"samples": {"t": [1, 2]}}]
    before = [identity(task, **one) for one in asked]
    write(file, LAST)
    noticed = [
        changed(then, identity(task, **one)) for then, one in zip(before, asked, strict=True)
    ]
    assert noticed == [["content"], [], ["content"], []]
    with pytest.raises(TrimixError, match="samples asks for document 7 of t, which has 7"):
        identity(task, samples={"t": [0, 7]})


def test_exemplars_count_where_there_are_some(identity, tmp_path):
    shots = tmp_path / "shots.jsonl"
    files = {"test": write(tmp_path / "docs.jsonl", DOCS), "train": write(shots, DOCS)}
    task = {
        **FREE,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "test_split": "test",
        "fewshot_split": "train",
    }
    asked = [{}, {"num_fewshot": 2}, {"num_fewshot": 0}]
    before = [identity(task, **one) for one in asked]
    write(shots, OTHER)
    noticed = [
        changed(then, identity(task, **one)) for then, one in zip(before, asked, strict=True)
    ]
    assert noticed == [["exemplars"], ["exemplars"], []]


def test_functions_count_with_what_they_import_from_beside_the_yaml(
    identity, tmp_path, monkeypatch
):
    folder = tmp_path / "tasks"
    (folder / "pack").mkdir(parents=True)
    files = {
        "utils.py": UTILS,
        "helper.py": HELPER,
        "lazily.py": "END = '.'\n",
        "pack/__init__.py": "",
        "pack/inner.py": "def word():\n    return ' so'\n",
        "unrelated.py": "",
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    task = {
        **CHOICE,
        "doc_to_text": "!function utils.text",
        "process_docs": "!function utils.processed",
        "test_split": "train",
        **PLACES["json"](write(tmp_path / "docs.jsonl", DOCS)),
    }
    before = identity(task)
    assert sorted(before["tasks"]["t"]["code"]) == sorted(set(files) - {"unrelated.py"})
    for name in files:
        (folder / name).write_text(files[name] + "# changed\n", encoding="utf-8")
        found = changed(before, identity(task))
        assert found == ([] if name == "unrelated.py" else ["code"]), name
        (folder / name).write_text(files[name], encoding="utf-8")


def test_the_code_of_a_policy_of_somebody_s_counts(identity, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    files = {"others_half.py": HALF, "others_share.py": "SHARE = 0.5\n", "others_else.py": ""}
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    task = {**CHOICE, "test_split": "train", **PLACES["json"](write(tmp_path / "d.jsonl", DOCS))}
    before = identity(task, "others_half:Half")
    for name, text in files.items():
        (tmp_path / name).write_text(text + "# changed\n", encoding="utf-8")
        found = list(compared(before, identity(task, "others_half:Half")))
        assert len(found) == (name != "others_else.py")
        assert all(one.startswith(f"policy_code.{name} (") for one in found)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert "policy_code" not in identity(task)


def test_how_a_group_averages_counts(identity, tmp_path):
    task = {**CHOICE, "test_split": "train", **PLACES["json"](write(tmp_path / "d.jsonl", DOCS))}
    found = []
    (tmp_path / "tasks").mkdir()
    for weighted in (True, False):
        metric = {"metric": "acc", "weight_by_size": weighted}
        group = {"group": "g", "task": ["t"], "aggregate_metric_list": [metric]}
        (tmp_path / "tasks" / "g.yaml").write_text(yaml.safe_dump(group), encoding="utf-8")
        found.append(identity(task, tasks=["g"]))
    assert found[0]["tasks"] == found[1]["tasks"]
    assert found[0]["groups"] != found[1]["groups"]


def test_a_sweep_names_the_task_whose_data_changed(pico, tmp_path):
    """Whole: the numbers of the old data are not shown for those of the new."""
    file = tmp_path / "docs.jsonl"
    task = {"task": "t", **CHOICE, "test_split": "train", **PLACES["json"](write(file, DOCS))}
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "t.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    asked = config(pico("llama"), tmp_path / "tasks", tmp_path / "out", tasks=["t"])
    asked["sweep"] = {"policies": ["small_cpt"]}
    sweep(asked)
    write(file, LAST)
    with pytest.raises(TrimixError, match=r"small_cpt holds .*tasks\.t\.content \(\w+ against"):
        sweep(asked)
