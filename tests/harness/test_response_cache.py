"""``--use_cache``: nothing twice, nothing lost, and never another run's answers."""

from __future__ import annotations

import functools
import json
import shutil
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from lm_eval.models.huggingface import HFLM

from tests.conftest import write_task
from tests.support.running import answers, evaluate, model_args, program, spied_rows
from trimix_lm_eval.engine import model_runner
from trimix_lm_eval.utils.errors import TrimixError

WORDS = ["the hen", "in the barn", "rivers", "སྐད་ཡིག", "x", "over there", "a rainy inn", "zq"]
DOCS = [
    {
        "q": f"{word} and then, number {i},",
        "choices": [" the end", f" {word[::-1]}", " no"],
        "a": i % 3,
    }
    for i, word in enumerate(WORDS * 2)
]
TASKS = ["choice", "rolling", "free"]


@pytest.fixture(scope="module")
def folders(pico):
    return pico("llama")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """The folder of a task of each kind."""
    folder = tmp_path_factory.mktemp("tasks")
    write_task(
        folder,
        "choice",
        DOCS,
        output_type="multiple_choice",
        doc_to_text="{{q}}",
        doc_to_choice="choices",
        doc_to_target="a",
        target_delimiter="",
        metric_list=[{"metric": "acc"}],
    )
    write_task(
        folder,
        "rolling",
        DOCS[:5],
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{q}}",
        metric_list=[{"metric": "bits_per_byte"}],
    )
    return write_task(
        folder,
        "free",
        DOCS[:6],
        output_type="generate_until",
        doc_to_text="{{q}}",
        doc_to_target="{{a}}",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 6},
        metric_list=[{"metric": "bypass"}],
    )


@pytest.fixture(scope="module")
def plain(folders, tasks):
    """``plain(policy)``: what a run without a cache gives, and its forward passes."""

    @functools.cache
    def get(policy):
        args = model_args(folders, batch_size=2, policy=policy)
        with pytest.MonkeyPatch.context() as patch, spied_rows(patch) as shapes:
            return evaluate("trimix", tasks, TASKS, model_args=args), len(shapes)

    return get


@pytest.fixture(scope="module")
def finished(folders, tasks, tmp_path_factory):
    """The cache of a run of one task."""
    folder = tmp_path_factory.mktemp("finished")
    run(folders, tasks, folder / "cache", names=["rolling"])
    return folder


def run(folders, tasks, cache, names=TASKS, **arguments):
    args = model_args(folders, batch_size=2, **arguments)
    return evaluate("trimix", tasks, list(names), model_args=args, use_cache=str(cache))


def told(results):
    """What must be equal: answers, weights, points."""
    chosen = results["config"]["trimix"]
    return chosen["weights_chosen"], chosen["task_points"]


def assert_same(got, want, names=TASKS):
    for name in names:
        for x, y in zip(answers(got, name), answers(want, name), strict=True):
            for a, b in zip(x, y, strict=True):
                if isinstance(b, str):
                    assert a == b
                elif isinstance(b, (tuple, list)):
                    assert a[0] == pytest.approx(b[0], abs=1e-5) and a[1] == b[1]
                else:
                    assert a == pytest.approx(b, rel=1e-6)
        metrics = {k: v for k, v in want["results"][name].items() if isinstance(v, float)}
        assert {k: got["results"][name][k] for k in metrics} == pytest.approx(metrics, rel=1e-6)
    assert told(got) == told(want)


def stored(cache) -> dict[str, dict[str, object]]:
    """Every table of the file."""
    with closing(sqlite3.connect(f"{cache}_rank0.db")) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master")]
        return {
            name: dict(db.execute(f"SELECT key, value FROM {name}"))
            for name in tables
            if name in ("trimix", "unnamed")
        }


@pytest.mark.parametrize("policy", ["ppl", "ppl_task", "fixed", "gate"])
def test_the_second_run_reads_everything(folders, tasks, plain, tmp_path, monkeypatch, policy):
    first = run(folders, tasks, tmp_path / "cache", policy=policy)
    assert sum(sum(c.values()) for c in told(first)[0].values()) == 16 + 5 + 6
    with spied_rows(monkeypatch) as shapes:
        second = run(folders, tasks, tmp_path / "cache", policy=policy)
    assert shapes == []
    assert_same(second, first)
    assert_same(first, plain(policy)[0])


def test_batch_size_and_place_do_not_make_another_run(folders, tasks, tmp_path, monkeypatch):
    first = run(folders, tasks, tmp_path / "cache")
    moved = {}
    for role, folder in folders.items():
        moved[role] = str(tmp_path / "moved" / role)
        shutil.copytree(folder, moved[role])
    with spied_rows(monkeypatch) as shapes:
        args = {**model_args(moved), "batch_size": 5}
        second = evaluate(
            "trimix", tasks, TASKS, model_args=args, use_cache=str(tmp_path / "cache")
        )
    assert shapes == []
    assert_same(second, first)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"policy": "proxy_tuning"}, ["policy=ppl", "policy=proxy_tuning"]),
        ({"policy": "fixed", "alpha": 0.5}, ["policy=ppl", "alpha=0.5"]),
        ({"grid": "0.1:0.9"}, ["policy=ppl", "grid"]),
        ({"refine": "quadratic"}, ["refine"]),
        ({"dtype": "bfloat16"}, ["float32", "bfloat16"]),
        ({"small_cpt_dtype": "bfloat16"}, ["small_cpt", "bfloat16"]),
        ({"large_revision": "v2"}, ["revision", "v2"]),
        ({"plausibility": 0.1}, ["plausibility"]),
        ({"max_length": 50}, ["max_length", "96", "50"]),
        ({"add_bos_token": True}, ["add_bos_token"]),
        ({"seed": 4}, ["seed"]),
        # These change scores or texts too:
        ({"prefix_token_id": 65}, ["prefix_token_id"]),
        ({"think_end_token": "the"}, ["think_end_token"]),
    ],
)
def test_a_file_of_another_run_is_refused(folders, tasks, finished, tmp_path, change, named):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    before = stored(tmp_path / "cache")
    with pytest.raises(TrimixError) as caught:
        run(folders, tasks, tmp_path / "cache", names=["rolling"], **change)
    for word in named:
        assert word in str(caught.value)
    assert "cache_rank0.db" in str(caught.value)
    assert stored(tmp_path / "cache") == before
    run(folders, tasks, tmp_path / "cache", names=["rolling"])


def test_other_weights_at_the_same_place_are_another_run(folders, tasks, tmp_path):
    here = {role: str(tmp_path / role) for role in folders}
    for role, folder in folders.items():
        shutil.copytree(folder, here[role])
    run(here, tasks, tmp_path / "cache", names=["rolling"])
    shutil.copy(
        Path(folders["small_base"]) / "model.safetensors",
        Path(here["small_cpt"]) / "model.safetensors",
    )
    with pytest.raises(TrimixError, match=r"differ in sources\.small_cpt\.digest"):
        run(here, tasks, tmp_path / "cache", names=["rolling"])


def test_another_tokenizer_is_another_run(folders, tasks, tmp_path):
    """Same weights, other token ids: other answers."""
    here = {role: str(tmp_path / role) for role in folders}
    for role, folder in folders.items():
        shutil.copytree(folder, here[role])
    run(here, tasks, tmp_path / "cache", names=["rolling"])
    for folder in here.values():
        file = Path(folder) / "tokenizer.json"
        content = json.loads(file.read_text(encoding="utf-8"))
        content["model"]["merges"] = content["model"]["merges"][:-1]
        file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(TrimixError, match="digest"):
        run(here, tasks, tmp_path / "cache", names=["rolling"])


def test_a_file_of_another_model_is_refused(folders, tasks, tmp_path):
    hf = HFLM(pretrained=folders["small_cpt"], dtype="float32", device="cpu", batch_size=4)
    evaluate(hf, tasks, ["choice"], use_cache=str(tmp_path / "cache"))
    before = stored(tmp_path / "cache")
    assert before
    with pytest.raises(TrimixError, match="(?s)cache_rank0.*other than trimix"):
        run(folders, tasks, tmp_path / "cache", names=["choice"])
    assert stored(tmp_path / "cache") == before


def test_sampled_texts_are_kept_as_they_were_drawn(folders, task_yaml, tmp_path, monkeypatch):
    folder = task_yaml(
        "sampled",
        DOCS[:4],
        output_type="generate_until",
        doc_to_text="{{q}}",
        doc_to_target="{{a}}",
        generation_kwargs={"max_gen_toks": 5, "do_sample": True, "temperature": 1.0},
        repeats=2,
        metric_list=[{"metric": "bypass"}],
    )
    first = run(folders, folder, tmp_path / "cache", names=["sampled"])
    with spied_rows(monkeypatch) as shapes:
        again = run(folders, folder, tmp_path / "cache", names=["sampled"])
    assert shapes == []
    assert answers(first, "sampled") == answers(again, "sampled")
    assert any(a != b for a, b in answers(first, "sampled")), "two draws of one prompt are equal"


# ---------------------------------------------------------------- runs that end early

#: Runs a spec and ends itself: by which signal, after how many forward passes.
DYING = """
import json, os, signal, sys
from tests.support.running import evaluate
from trimix_lm_eval.engine.input_batch import InputBatch
from trimix_lm_eval.harness.response_cache import ResponseCache

spec = json.loads(sys.argv[1])
extend, keep, calls = InputBatch.extend, ResponseCache.keep, 0
log = os.open(spec["finished"], os.O_CREAT | os.O_WRONLY | os.O_APPEND)

def dying(self, *args):
    global calls
    calls += 1
    if calls > spec["after"]:
        os.kill(os.getpid(), spec["signal"])
    return extend(self, *args)

def noting(self, key, answer):
    keep(self, key, answer)
    os.write(log, (json.dumps(key) + "\\n").encode())

InputBatch.extend, ResponseCache.keep = dying, noting
evaluate("trimix", spec["folder"], spec["tasks"], model_args=spec["args"], use_cache=spec["cache"])
"""


def die(folders, tasks, tmp_path, after, number, **arguments):
    """Run until a signal; returns the process and the keys of what it had finished."""
    finished = tmp_path / "finished.jsonl"
    spec = {
        "folder": str(tasks),
        "tasks": TASKS,
        "args": model_args(folders, batch_size=2, **arguments),
        "cache": str(tmp_path / "cache"),
        "finished": str(finished),
        "after": after,
        "signal": number,
    }
    ended = program("-c", DYING, json.dumps(spec), timeout=90, PYTHONPATH=".")
    assert finished.exists(), ended.stderr[-2000:]
    return ended, [json.loads(line) for line in finished.read_text().splitlines()]


@pytest.mark.parametrize("policy", ["ppl", "ppl_task"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill", "ctrl-c"])
def test_a_run_that_was_ended_is_taken_up(
    folders, tasks, plain, tmp_path, monkeypatch, policy, number
):
    whole, full = plain(policy)
    log = str(tmp_path / "weights.jsonl")
    # ppl_task reads eight batches of prompts first, before any request is scored.
    ended, finished = die(folders, tasks, tmp_path, 18, number, policy=policy, weights_log=log)
    if number == signal.SIGKILL:
        assert ended.returncode == -signal.SIGKILL
    else:
        assert ended.returncode != 0 and "interrupted; with --use_cache" in ended.stderr
    assert 4 <= len(finished) < 48 + 5 + 6
    found = stored(tmp_path / "cache")["trimix"]
    assert {*finished, "fingerprint"} <= set(found)
    if policy == "ppl_task":
        points = [key for key in found if key.startswith("point:")]
        assert points, "an answer was kept before the point it was made with"

    with spied_rows(monkeypatch) as shapes:
        resumed = run(folders, tasks, tmp_path / "cache", policy=policy, weights_log=log)
    assert 0 < len(shapes) < full
    assert_same(resumed, whole)
    if number == signal.SIGINT:
        lines = [json.loads(line) for line in Path(log).read_text().splitlines()]
        keys = [(x["task"], x["doc_id"], x["idx"]) for x in lines]
        assert len(keys) == len(set(keys)) == 48 + 5 + 6


@pytest.mark.parametrize("error", [RuntimeError, ValueError])
def test_a_source_that_fails_mid_run_loses_nothing(folders, tasks, tmp_path, monkeypatch, error):
    hidden, calls = model_runner.ModelRunner.forward, []

    def failing(self, *args):
        calls.append(self.name)
        if len(calls) > 24 and self.name == "small_cpt":
            raise error("device-side assert triggered")
        return hidden(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(model_runner.ModelRunner, "forward", failing)
        with pytest.raises(TrimixError, match="small_cpt.*device-side assert"):
            # The trial at loading counts too: three sources, three pieces each.
            run(folders, tasks, tmp_path / "cache", names=["choice"])
    assert len(stored(tmp_path / "cache")["trimix"]) > 4
    with spied_rows(monkeypatch) as shapes:
        resumed = run(folders, tasks, tmp_path / "cache", names=["choice"])
    rest = len(shapes)
    with spied_rows(monkeypatch) as shapes:
        whole = evaluate("trimix", tasks, ["choice"], model_args=model_args(folders, batch_size=2))
    assert 0 < rest < len(shapes)
    assert_same(resumed, whole, ["choice"])
