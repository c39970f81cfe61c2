"""A sweep goes on where it stopped, however it stopped, and never mixes what does not belong."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
from collections import Counter
from pathlib import Path

import pytest
from lm_eval.loggers import EvaluationTracker

from tests.support.sweeping import config, make_lm_eval_quick, write_tasks, written
from trimix_lm_eval.sweep import run, sweep
from trimix_lm_eval.sweep.answers import Answer
from trimix_lm_eval.sweep.journal import Journal
from trimix_lm_eval.sweep.lm import TriMix
from trimix_lm_eval.utils import errors
from trimix_lm_eval.utils.distributed import DistributedEnv
from trimix_lm_eval.utils.errors import TrimixError

TASKS = ["choice", "rolling", "free"]
BLOCK = {"name": "trial", "policies": ["ppl", "ppl_task"], "grid": ["0.3:0.5"]}


@pytest.fixture(scope="module", autouse=True)
def quick_lm_eval():
    with pytest.MonkeyPatch.context() as patch:
        make_lm_eval_quick(patch)
        yield


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"), TASKS, docs=5)


@pytest.fixture
def asked(pico, tasks, tmp_path):
    """A config for a folder of its own."""
    return config(pico("llama"), tasks, tmp_path / "out", tasks=TASKS, batch_size=1, sweep=BLOCK)


@pytest.fixture(scope="module")
def done(pico, tasks, tmp_path_factory):
    """The config of a sweep that is finished, for tests that change nothing."""
    output = tmp_path_factory.mktemp("whole")
    made = config(pico("llama"), tasks, output, tasks=TASKS, batch_size=1, sweep=BLOCK)
    sweep(made)
    return made


@pytest.fixture(scope="module")
def whole(done):
    """What an uninterrupted sweep writes, by variant."""
    return by_variant(sweep(done))


def by_variant(files):
    """Everything in results files that does not tell of the time."""
    found = {}
    for file in files:
        one = written(file)
        for key in ("date", "total_evaluation_time_seconds"):
            one.pop(key)
        one["config"]["trimix"].pop("speculation")
        found[one["config"]["trimix"]["sweep"]["variant"]] = one
    return found


def hidden(asked) -> Path:
    return Path(asked["output_path"]) / ".trial.sweep"


@pytest.fixture
def told(caplog, capsys):
    errors._warned.clear()
    return lambda: capsys.readouterr().err + "".join(r.getMessage() for r in caplog.records)


@pytest.fixture
def loads(monkeypatch):
    """The variants for which models were loaded, one list for each time."""
    seen: list[list[str]] = []
    load_many = TriMix.load_many

    def spy(variants, *more):
        seen.append([variant.policy for variant in variants])
        return load_many(variants, *more)

    monkeypatch.setattr(TriMix, "load_many", spy)
    return seen


# ---------------------------------------------------------------- what is there is skipped


def test_a_rerun_loads_nothing_and_says_so(asked, loads, told):
    files = sweep(asked)
    before = [file.stat().st_mtime_ns for file in files]
    told()
    assert sweep(asked) == files
    assert loads == [["ppl", "ppl_task", "fixed"]]
    assert [file.stat().st_mtime_ns for file in files] == before
    assert "3 of 3 results are there already and are skipped." in told()
    assert not hidden(asked).exists()


def test_only_what_is_added_runs(asked, whole, loads, told):
    first = {**asked, "sweep": {"name": "trial", "policies": ["ppl"]}}
    sweep(first)
    told()
    files = sweep(asked)
    assert loads == [["ppl"], ["ppl_task", "fixed"]]
    assert "1 of 3 results are there already and are skipped." in told()
    found = by_variant(files)
    # Written when the sweep had no points yet.
    assert found["ppl"]["config"]["trimix"]["sweep"].pop("points") == []
    wanted = json.loads(json.dumps(whole))
    del wanted["ppl"]["config"]["trimix"]["sweep"]["points"]
    assert found == wanted


def test_another_batch_size_or_place_of_the_models_is_the_same_sweep(done, loads, tmp_path):
    moved = {**done, "model_args": dict(done["model_args"]), "batch_size": 4}
    for role in ("pretrained", "small_cpt", "small_base"):
        moved["model_args"][role] = str(tmp_path / role)
        shutil.copytree(done["model_args"][role], tmp_path / role)
    moved["model_args"]["speculative"] = "off"
    assert len(sweep(moved)) == 3
    assert not loads


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"limit": 4}, r"run\.limit \(None against 4\)"),
        ({"num_fewshot": 0}, r"run\.num_fewshot \(None against 0\)"),
        ({"gen_kwargs": {"max_gen_toks": 3}}, r"run\.gen_kwargs\.max_gen_toks \(None against 3\)"),
        ({"seed": 5}, r"run\.seed"),
        ({"system_instruction": "Be brief."}, r"run\.system_instruction"),
        ({"metadata": {"exemplars": "train_2"}}, r"run\.metadata\.exemplars"),
        ({"tasks": ["choice", "rolling"]}, r"tasks\.free"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_results_of_another_config_are_refused(done, loads, change, says):
    other = f"(?s)ppl.*other results than are asked for: .*{says}.*output_path"
    with pytest.raises(TrimixError, match=other):
        sweep({**done, **change})
    assert not loads


def test_another_model_or_another_definition_of_a_task_is_refused(done, tasks, pico, tmp_path):
    other = {**done, "model_args": {**done["model_args"], "small_cpt": pico()["small_base"]}}
    with pytest.raises(TrimixError, match=r"sources\.small_cpt\.digest"):
        sweep(other)
    copied = tmp_path / "copied"
    shutil.copytree(tasks, copied)
    yaml = (copied / "choice.yaml").read_text(encoding="utf-8")
    (copied / "choice.yaml").write_text(yaml.replace("{{q}}", "Q: {{q}}"), encoding="utf-8")
    with pytest.raises(TrimixError, match=r"tasks\.choice\.definition"):
        sweep({**done, "include_path": str(copied)})


DAMAGES = {
    "cut": lambda data: data[:-100],
    "empty": lambda data: b"",
    "a digit": lambda data: data.replace(b"0.", b"1.", 1),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("pattern", ["results_*.json", "samples_free_*.jsonl"])
def test_finished_results_that_were_damaged_are_named(done, whole, tmp_path, pattern, damage):
    """No row of the table is lost, and no other number shown in its place."""
    copied = {**done, "output_path": str(tmp_path / "copied")}
    shutil.copytree(done["output_path"], copied["output_path"])
    (file,) = (tmp_path / "copied" / "ppl_task").rglob(pattern)
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    with pytest.raises(TrimixError, match=rf"ppl_task is finished.*{file.name} is not as it was"):
        sweep(copied)


def test_finished_results_of_an_earlier_version_are_refused_by_name(done, tmp_path):
    copied = {**done, "output_path": str(tmp_path / "copied")}
    shutil.copytree(done["output_path"], copied["output_path"])
    file = tmp_path / "copied" / "ppl" / "fingerprint.json"
    then = json.loads(file.read_text(encoding="utf-8"))
    del then["files"]
    for task in then["tasks"].values():
        del task["content"], task["exemplars"], task["code"]
    file.write_text(json.dumps(then), encoding="utf-8")
    with pytest.raises(TrimixError, match=r"ppl holds results of an earlier version.*cannot be"):
        sweep(copied)
    for nonsense in ("[]", "[" * 100_000, "\0"):
        file.write_text(nonsense, encoding="utf-8")
        with pytest.raises(TrimixError, match="ppl is in the way"):
            sweep(copied)


def test_files_that_somebody_adds_to_results_do_not_take_their_place(done, tmp_path):
    copied = {**done, "output_path": str(tmp_path / "copied")}
    shutil.copytree(done["output_path"], copied["output_path"])
    files = sweep(copied)
    (files[0].parent / "results_0.json").write_text("{}", encoding="utf-8")
    assert sweep(copied) == files


def test_what_is_in_the_way_is_left_alone(asked):
    place = Path(asked["output_path"]) / "ppl"
    place.mkdir(parents=True)
    (place / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(TrimixError, match="ppl is in the way") as refused:
        sweep(asked)
    assert f"another output_path than {asked['output_path']}," in str(refused.value)
    assert (place / "mine.txt").read_text(encoding="utf-8") == "mine"
    shutil.rmtree(place)
    files = sweep(asked)
    files[0].unlink()
    with pytest.raises(TrimixError, match=r"its \S+/results_\S+\.json is gone"):
        sweep(asked)


# ---------------------------------------------------------------- however it stops


def live(asked, die, log) -> int:
    """Run the sweep in a process of its own that ends as ``die`` says; its exit code."""

    def child():
        add, save, become = Journal.add, EvaluationTracker.save_results_samples, run.SweepLM.become
        count: Counter[str] = Counter()

        def end(event):
            count[event] += 1
            if die == (event, count[event]):
                os.kill(os.getpid(), signal.SIGKILL)

        def added(self, answers):
            add(self, answers)
            with open(log, "a") as stream:
                stream.writelines(f"{variant} {request.hex()}\n" for variant, request, _ in answers)
            for _ in answers:
                end("answers")

        def saved(self, **what):
            end("samples")
            save(self, **what)

        def became(self, which):
            end("variants")
            become(self, which)

        Journal.add, EvaluationTracker.save_results_samples = added, saved
        run.SweepLM.become = became
        sweep(asked)
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode is not None, "hangs"
    return process.exitcode


def test_kill_in_a_loop(asked, whole, tmp_path):
    """Killed at random answers, and while results are written: the same files in the end."""
    log = tmp_path / "log"
    draw = random.Random(7)
    deaths = [("answers", draw.randrange(1, 25)) for _ in range(5)]
    deaths += [("samples", 2), ("variants", 3), ("samples", 3)]
    for die in deaths:
        assert live(asked, die, log) == -signal.SIGKILL, die
        for file in Path(asked["output_path"]).rglob("results_*.json"):
            if not file.is_relative_to(hidden(asked)):
                assert len(written(file)["samples"]) == len(TASKS)
    assert live(asked, None, log) == 0
    assert not hidden(asked).exists()
    files = [next((Path(asked["output_path"]) / name).rglob("results_*.json")) for name in whole]
    assert by_variant(files) == whole
    made = log.read_text(encoding="utf-8").splitlines()
    assert len(made) == len(set(made)), "nothing is made twice"


@pytest.mark.parametrize("seconds", [0.3, 0.8])
def test_kill_at_any_time(asked, whole, seconds):
    process = multiprocessing.get_context("fork").Process(target=sweep, args=(asked,))
    process.start()
    process.join(seconds)
    process.kill()
    process.join()
    assert by_variant(sweep(asked)) == whole


def test_a_question_whose_options_differ_in_context_keeps_its_weights(asked, tasks, tmp_path):
    """Half of its options are answered: it is asked anew, or the other half would choose anew."""
    write_tasks(tasks, ["choice_mutual"], docs=5)
    alone = {**asked, "tasks": ["choice_mutual"], "output_path": str(tmp_path / "alone")}
    want = by_variant(sweep(alone))
    mutual = {**asked, "tasks": ["choice_mutual"]}
    for answers in (4, 18):
        assert live(mutual, ("answers", answers), tmp_path / "log") == -signal.SIGKILL
    assert by_variant(sweep(mutual)) == want


def test_an_error_keeps_what_is_done(asked, whole, monkeypatch):
    """One generation in, the model fails: a rerun asks for the rest only."""
    iter_generate = TriMix.iter_generate

    def failing(self, *arguments):
        found = iter_generate(self, *arguments)
        yield next(found)
        raise TrimixError("Out of memory.", "buy some")

    with monkeypatch.context() as patch:
        patch.setattr(TriMix, "iter_generate", failing)
        with pytest.raises(TrimixError, match="Out of memory"):
            sweep(asked)
    asked_again = []

    def spy(self, pairs, *more):
        asked_again.append(pairs)
        return iter_loglikelihood(self, pairs, *more)

    iter_loglikelihood = TriMix.iter_loglikelihood
    monkeypatch.setattr(TriMix, "iter_loglikelihood", spy)
    assert by_variant(sweep(asked)) == whole
    assert not asked_again
    for one in whole.values():  # why texts ended is in the journal, too
        ((task, counts),) = one["config"]["trimix"]["finish_reasons"].items()
        assert task == "free" and sum(counts.values()) == one["n-samples"]["free"]["effective"]


def test_answers_that_changed_places_are_made_anew(asked, whole, monkeypatch, told):
    """Three scores of an interrupted sweep are each other's: no number of the rerun is."""
    with monkeypatch.context() as patch:
        patch.setattr(TriMix, "iter_generate", lambda *_: [][0])
        with pytest.raises(IndexError):
            sweep(asked)
    with sqlite3.connect(hidden(asked) / "rank0.sqlite") as db:
        rows = db.execute("SELECT variant, request, answer FROM answers").fetchall()[3:6]
        for (variant, request, _), (_, _, answer) in zip(rows, rows[1:] + rows[:1], strict=True):
            change = "UPDATE answers SET answer = ? WHERE variant = ? AND request = ?"
            db.execute(change, (answer, variant, request))
    db.close()
    assert by_variant(sweep(asked)) == whole
    assert told().count("(3 answers not as written)") == 1


def test_answers_of_journals_of_before_texts_told_why_they_end():
    choice = [[0.1, 0.9, None], 2.5, 7, None]
    old = Answer.decoded(json.dumps(["a text", choice]))
    assert (old.result, old.choice.tokens, old.finish_reason) == ("a text", 7, None)
    new = old._replace(finish_reason="length")
    assert Answer.decoded(new.encoded()) == new and Answer.decoded(old.encoded()) == old


# ---------------------------------------------------------------- the journal


@pytest.mark.parametrize("damage", ["garbage", "a page", "version"])
def test_a_journal_that_is_of_no_use_is_started_anew(asked, whole, told, damage):
    hidden(asked).mkdir(parents=True)
    file = hidden(asked) / "rank0.sqlite"
    journal = Journal(hidden(asked), DistributedEnv(), ["v"])
    for i in range(300):
        journal.add([("v", i.to_bytes(16, "big"), "an answer " * 10)])
    journal.close()
    content = bytearray(file.read_bytes())
    if damage == "garbage":
        content = bytearray(b"nonsense" * 1000)
    elif damage == "a page":
        content[8192:12288] = b"\xff" * 4096
    file.write_bytes(content)
    if damage == "version":
        with sqlite3.connect(file) as db:
            db.execute("PRAGMA user_version = 99")
        db.close()
    assert by_variant(sweep(asked)) == whole
    assert "rank0.sqlite is not usable" in told()


def test_a_second_sweep_into_the_same_folder_is_noticed(asked):
    journal = Journal(hidden(asked), DistributedEnv(), [])
    with pytest.raises(TrimixError, match="another sweep writes into the same output_path"):
        sweep(asked)
    journal.close()
    assert len(sweep(asked)) == 3


def test_answers_of_more_processes_are_taken_over(tmp_path):
    for rank in range(3):
        journal = Journal(tmp_path / "j", DistributedEnv(rank), ["v", "w"])
        journal.add([("v", bytes([rank]), f"answer {rank}")])
        journal.add([("of another setting", b"x", "not wanted")])
        journal.close()
    journal = Journal(tmp_path / "j", DistributedEnv(), ["v", "w"])
    assert journal.answers("v") == {bytes([rank]): f"answer {rank}" for rank in range(3)}
    assert journal.requests("w") == set()
    assert journal.answer("v", b"\x02") == "answer 2" and journal.answer("v", b"?") is None
    journal.remove()
    assert not (tmp_path / "j").exists()


def test_a_folder_that_cannot_be_written(asked, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(TrimixError, match="(?s)cannot be made.*another output_path"):
        sweep({**asked, "output_path": str(tmp_path / "file" / "out")})


def test_more_processes_than_documents(asked, monkeypatch):
    """lm-eval cannot do that: one of them would have nothing to answer."""
    with pytest.raises(TrimixError, match="(?s)choice has 1 document for 2 processes.*at most 1"):
        run._check_share({"choice": 1}, 2)
    seen = []
    monkeypatch.setattr(run, "_check_share", lambda counts, world: seen.append((counts, world)))
    sweep({**asked, "tasks": ["choice", "free"], "limit": 2, "samples": None})
    assert seen == [({"choice": 2, "free": 2}, 1)]


def test_a_weights_log_that_cannot_be_written_costs_no_loading(asked, loads, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    asked["model_args"]["weights_log"] = str(tmp_path / "file" / "log.jsonl")
    with pytest.raises(TrimixError, match="weights_log"):
        sweep(asked)
    assert not loads


def test_results_that_cannot_be_written_whole(asked, monkeypatch):
    """lm-eval logs that its file could not be written, and goes on; a sweep does not."""

    def cut(self, task_name, samples):
        file = next(Path(self.output_path).glob("*/results_*.json"))
        date = file.stem.removeprefix("results_")
        (file.parent / f"samples_{task_name}_{date}.jsonl").write_text("{}\n{", encoding="utf-8")

    with monkeypatch.context() as patch:
        patch.setattr(EvaluationTracker, "save_results_samples", cut)
        with pytest.raises(TrimixError, match="(?s)samples_choice.*is not whole.*make room"):
            sweep(asked)
    assert not (Path(asked["output_path"]) / "ppl").exists()
    assert len(sweep(asked)) == 3
