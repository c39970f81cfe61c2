"""Which tasks are indexed: lm-eval's thousands only where one of them may be asked for."""

from __future__ import annotations

import pytest

from trimix_lm_eval.harness import requests
from trimix_lm_eval.utils.paths import tasks_dir


@pytest.mark.parametrize("names", [["trimix_demo"], ["trimix_demo_say", "trimix_milic_bo_mc_ll"]])
def test_our_own_are_indexed_alone(names):
    manager = requests.manager_for(None, names)
    assert not any(name.startswith("mmlu") for name in manager.all_tasks)
    assert set(names) <= set(manager.all_tasks)
    paths = [entry.yaml_path for entry in manager.task_index.values()]
    assert all(path is None or path.is_relative_to(tasks_dir()) for path in paths)  # tags: None


@pytest.mark.parametrize("names", [None, ["trimix_demo", "hellaswag"], ["trimix_*"], ["nothing"]])
def test_all_are_if_others_are_asked_for(names):
    manager = requests.manager_for(None, names)
    assert {"trimix_demo", "hellaswag"} <= set(manager.all_tasks)


def test_a_user_s_folder_overrides_ours(tmp_path):
    (tmp_path / "mine.yaml").write_text("task: trimix_demo_rolling\ndataset_path: json\n")
    manager = requests.manager_for(str(tmp_path), ["trimix_demo_rolling"])
    entry = manager.task_index["trimix_demo_rolling"]
    assert entry.yaml_path == tmp_path / "mine.yaml" and "hellaswag" in manager.all_tasks


def test_what_is_loaded_is_the_same_either_way():
    both = []
    for names in (["trimix_demo"], None):
        loaded = requests.load_tasks(requests.manager_for(None, names), ["trimix_demo"], {"a": 1})
        tasks = loaded["tasks"]
        configs = {name: {**task.dump_config()} for name, task in tasks.items()}
        docs = {name: list(task.test_docs()) for name, task in tasks.items()}
        both.append((sorted(loaded["groups"]), str(configs), docs))
    assert both[0] == both[1]
