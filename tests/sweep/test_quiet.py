"""What is said while lm-eval works for a sweep, and that nothing else changes by it."""

from __future__ import annotations

import json
import subprocess

import pytest
from lm_eval import evaluator
from lm_eval.api import task
from lm_eval.loggers.utils import get_git_commit_hash

from tests.support.sweeping import config, make_lm_eval_quick, write_tasks
from trimix_lm_eval.sweep import quiet, sweep
from trimix_lm_eval.utils import errors


@pytest.mark.parametrize("repository", [False, True])
def test_the_commit_is_lm_evals_and_git_says_nothing(tmp_path, monkeypatch, capfd, repository):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    if repository:
        who = ("-c", "user.name=n", "-c", "user.email=e@example.org")
        subprocess.run(["git", "init", "-q"], check=True)
        subprocess.run(["git", *who, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    wanted = get_git_commit_hash()
    capfd.readouterr()
    assert quiet.git_commit_hash() == wanted and (wanted is not None) == repository
    assert capfd.readouterr() == ("", "")


def test_without_git_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert quiet.git_commit_hash() is None


def test_lm_eval_has_its_own_names_back_after_an_error():
    before = task.tqdm, evaluator.get_git_commit_hash
    with pytest.raises(KeyError), quiet.environment_told_once(), quiet.named_prompts_bar("t"):
        assert task.tqdm != before[0] and evaluator.get_git_commit_hash != before[1]
        raise KeyError
    assert (task.tqdm, evaluator.get_git_commit_hash) == before


def test_the_bar_over_prompts_names_the_task(capsys, monkeypatch):
    monkeypatch.setattr(quiet, "_SOON", 0.0)
    for rank in (0, 1):
        with quiet.named_prompts_bar("my_task", rank):
            assert list(task.tqdm([1, 2], total=2)) == [1, 2]
    (line,) = capsys.readouterr().err.splitlines()  # of the first process alone
    assert line.startswith("my_task: prompts: 2/2 [")


def test_a_sweep_says_each_thing_once(pico, tmp_path, monkeypatch, capfd, caplog):
    """Outside of a repository, with a limit, two settings, and texts that have no prompt."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    errors._warned.clear()
    make_lm_eval_quick(monkeypatch)
    tasks = write_tasks(tmp_path / "tasks")
    block = {"policies": ["ppl", "ent", "ppl_task"], "seeds": [1, 2]}
    folders = pico("llama")
    capfd.readouterr()  # what saving the models said, if no other test had them made
    files = sweep(config(folders, tasks, tmp_path / "out", tasks=["rolling"], limit=2, sweep=block))
    told = capfd.readouterr().err
    said = [record.getMessage() for record in caplog.records]
    assert "fatal" not in told and "| 0/" not in told
    assert sum(line.startswith("--limit SHOULD ONLY BE USED FOR TESTING") for line in said) == 1
    assert sum(line.startswith("Rolling log-likelihood has no prompt") for line in said) == 1
    assert any("no prompt: policy=ent, ppl_task weights" in line for line in said)
    for file in files:
        content = json.loads(file.read_text(encoding="utf-8"))
        assert content["config"]["limit"] == 2 and content["git_hash"] is None
    assert len(files) == 6
