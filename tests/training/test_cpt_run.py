"""`trimix cpt` from text to a model that works as small_cpt, and back again after any end."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock
from lm_eval.models.huggingface import HFLM
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tests.support import quick_python
from tests.support.cpt_runs import ENGLISH, config, difference, weights, write_text
from tests.support.running import ROOT, environment, evaluate, program
from trimix_lm_eval import TriMix, cli
from trimix_lm_eval.loading.preflight import memory
from trimix_lm_eval.training.cpt import base as bases
from trimix_lm_eval.training.cpt import (
    checkpoints,
    corpus,
    report,
    run,
    saving,
    seals,
    train,
    trainer,
)
from trimix_lm_eval.utils.errors import TrimixError

pytestmark = pytest.mark.slow

LAUNCH = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


@pytest.fixture(scope="module")
def small_base(pico):
    return pico("llama", padded=False)["small_base"]


@pytest.fixture(scope="module")
def done(small_base, tmp_path_factory):
    """(config, folder, what was printed) of a run that nothing interrupted, with a test file."""
    folder = tmp_path_factory.mktemp("done")
    write_text(folder / "text.txt")
    tested = (folder / "text.txt").read_text().splitlines()[:30]
    rows = [{"text": "\n".join(tested[i : i + 5])} for i in range(0, 30, 5)]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = config(
        small_base,
        folder,
        test=str(folder / "test.jsonl"),
        language="eng_Latn",
        license="cc0-1.0",
    )
    (folder / "cpt.yaml").write_text(yaml.safe_dump(given))
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert cli.main(["cpt", str(folder / "cpt.yaml")]) == 0
    return given, folder, said.getvalue()


def measured(folder):
    return json.loads((folder / "out" / "cpt" / "measured.json").read_text())


# ---------------------------------------------------------------- what comes of it


def test_training_lowers_held_out_loss(done):
    _, folder, said = done
    numbers = measured(folder)
    assert set(numbers) == {"held_out", "test"}
    for name, found in numbers.items():
        assert found["after"] < 0.8 * found["before"], name
    log = json.loads((folder / "out" / "cpt" / "log.json").read_text())
    found = [entry["eval_bits_per_byte"] for entry in log if "eval_bits_per_byte" in entry]
    assert len(found) == 3 and found == sorted(found, reverse=True)
    assert f"{found[-1]:.4f} after" in said
    assert found[-1] == pytest.approx(numbers["held_out"]["after"], rel=1e-5)


def test_what_was_printed(done):
    _, folder, said = done
    dropped = (folder / "out" / "cpt" / "data" / "dropped.jsonl").read_text().splitlines()
    assert len(dropped) == 30 and "30 dropped: near held-out text" in said
    assert json.loads(dropped[3]) == {
        "reason": "near held-out text",
        "file": str(folder / "text.txt"),
        "line": 4,
        "bytes": len((folder / "text.txt").read_text().splitlines()[3]),
        "text": (folder / "text.txt").read_text().splitlines()[3],
    }
    for part in ("1 file, 400 lines", "Latin 100.0%", "tokens per character", "12 steps of 4 x 32"):
        assert part in said, part
    before = measured(folder)["held_out"]["before"]
    assert f"before     {before:.4f} bits per byte of held-out text" in said
    report = json.loads((folder / "out" / "cpt" / "data" / "report.json").read_text())
    held_out = (folder / "out" / "cpt" / "data" / "held_out.jsonl").read_text()
    assert not any(json.loads(row)["text"] in held_out for row in dropped), "chosen by the test"
    account = report["text"]
    lost = sum(one["lines"] for one in account["dropped"].values())
    assert account["lines"] == account["kept"] + account["held out"] + lost
    assert report["test"]["documents"] == 6


def test_bits_per_byte_are_those_of_lm_eval_and_of_trimix(done, pico, task_yaml):
    _, folder, _ = done
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    tasks = task_yaml(
        "own",
        rows,
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[{"metric": "bits_per_byte"}],
    )
    assert json.loads((folder / "out" / "config.json").read_text())["use_cache"]
    wanted = measured(folder)["test"]["after"]
    hf = HFLM(pretrained=str(folder / "out"), dtype="float32", device="cpu", max_length=32)
    found = evaluate(hf, tasks, ["own"])["results"]["own"]["bits_per_byte,none"]
    assert found == pytest.approx(wanted, rel=1e-5)
    trio = pico("llama", padded=False)
    model = TriMix.from_pretrained(
        trio["large_ins"],
        small_cpt=str(folder / "out"),
        small_base=trio["small_base"],
        policy="small_cpt",
        max_length=32,
    )
    texts = [row["text"] for row in rows]
    bits = -sum(one.log_likelihood for one in model.loglikelihood_rolling(texts)) / 0.6931471805599
    assert bits / sum(len(text.encode()) for text in texts) == pytest.approx(wanted, rel=1e-5)


def test_the_card_has_what_a_reader_needs(done):
    from huggingface_hub import ModelCard

    given, folder, _ = done
    card = ModelCard.load(folder / "out" / "README.md")
    assert card.data.license == "cc0-1.0" and card.data.language == "eng"
    numbers = measured(folder)
    digest = json.loads((folder / "out" / "cpt" / "run.json").read_text())["base files"]["digest"]
    for part in (
        f"| {numbers['test']['before']:.4f} | {numbers['test']['after']:.4f} |",
        hashlib.sha256((folder / "text.txt").read_bytes()).hexdigest(),
        digest,
        "learning_rate: 0.01",
        "tokens per character",
        f"torch {version('torch')}",
        "Dropped: 30 near held-out text.",
    ):
        assert part in card.text, part
    assert "None" not in card.text and "\n\n\n" not in card.text
    recipe = yaml.safe_load(card.text.split("```yaml\n")[1].split("```")[0])
    assert recipe["steps"] == given["steps"] and recipe["text"] == ["text.txt"]


def test_the_tokenizer_does_not_say_how_this_run_found_it(done):
    _, folder, _ = done
    saved = json.loads((folder / "out" / "tokenizer_config.json").read_text())
    assert not {"is_local", "local_files_only"} & set(saved)


def test_a_finished_run_is_not_made_again(done, monkeypatch, capsys):
    given, folder, said = done
    monkeypatch.setattr(run, "_train", None)
    assert train(folder / "cpt.yaml") == folder / "out"
    assert capsys.readouterr().out.splitlines()[-3:] == said.splitlines()[-3:]


def test_a_changed_config_is_refused_and_the_difference_named(done, small_base):
    given, folder, _ = done
    with pytest.raises(TrimixError, match=r"another run: learning_rate \(0.01 against 0.001\)"):
        train({**given, "learning_rate": 1e-3})
    with (folder / "text.txt").open("a") as stream:
        stream.write("one line more\n")
    with pytest.raises(TrimixError, match="another run: data.text"):
        train(given)
    lines = (folder / "text.txt").read_text().splitlines()[:-1]
    (folder / "text.txt").write_text("\n".join(lines) + "\n")
    train({**given, "license": "mit", "micro_batch": 2})
    with pytest.raises(TrimixError, match="holds config.json, which no such run has made"):
        train({**given, "output": small_base})


# ---------------------------------------------------------------- ends of all kinds

#: Trains until told to die by kill -9: at a seal, with a checkpoint that is there but not sealed.
#: The first seal is that of the text.
DIES = """
import os, signal, sys
from trimix_lm_eval.training.cpt import seals, train

seal, left = seals.seal, int(sys.argv[2])

def sealed(folder):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    seal(folder)

seals.seal = sealed
train(sys.argv[1])
"""


def test_killed_and_taken_up_again(done, tmp_path):
    given, folder, _ = done
    (tmp_path / "cpt.yaml").write_text(yaml.safe_dump({**given, "output": str(tmp_path / "out")}))
    (tmp_path / "dies.py").write_text(DIES)
    ended = program(str(tmp_path / "dies.py"), str(tmp_path / "cpt.yaml"), "3", PYTHONPATH=".")
    assert ended.returncode == -signal.SIGKILL, ended.stderr[-3000:]
    assert not (tmp_path / "out" / "config.json").exists()
    left = sorted(path.name for path in (tmp_path / "out/cpt/checkpoints").iterdir())
    assert left == ["checkpoint-4", "checkpoint-8"]
    ended = program("-m", "trimix_lm_eval", "cpt", str(tmp_path / "cpt.yaml"))
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "going on after step 4" in ended.stdout and "step 8:" in ended.stdout
    assert difference(tmp_path / "out", folder / "out") <= 1e-6
    assert measured(tmp_path)["held_out"] == measured(folder)["held_out"]


class Killed(BaseException):
    """Raised where a process is to end."""


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (corpus.Packer, "close"),
        (corpus.Path, "rename"),
        (trainer.CptTrainer, "save_model"),
        (saving, "save"),
        (saving, "move"),
        (run, "_tidy"),
    ],
)
def test_an_end_anywhere_changes_nothing(done, tmp_path, monkeypatch, module, name):
    given, folder, _ = done
    given = {**given, "output": str(tmp_path / "out")}

    def dies(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(module, name, dies)
        train(given)
    train(given)
    assert difference(tmp_path / "out", folder / "out") <= 1e-6
    left = {path.name for path in (tmp_path / "out" / "cpt").iterdir()}
    assert not left & {"data.new", "model.new", "best", "checkpoints"}


def test_a_checkpoint_that_lacks_something_is_passed_over(tmp_path):
    for steps in (5, 10, 20):
        folder = tmp_path / f"checkpoint-{steps}"
        folder.mkdir()
        (folder / "weights").write_bytes(b"12345")
        seals.seal(folder)
    (tmp_path / "checkpoint-20" / "weights").write_bytes(b"123")
    (tmp_path / "checkpoint-30").mkdir()
    assert checkpoints.newest(tmp_path) == tmp_path / "checkpoint-10"
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-5", "checkpoint-10"}
    assert checkpoints.newest(tmp_path / "none") is None


def test_interrupted_by_the_user(done, tmp_path):
    given, _, _ = done
    (tmp_path / "cpt.yaml").write_text(
        yaml.safe_dump({**given, "output": str(tmp_path / "out"), "steps": 4000, "patience": 0})
    )
    process = subprocess.Popen(
        [quick_python.python(), "-m", "trimix_lm_eval", "cpt", str(tmp_path / "cpt.yaml")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=ROOT,
    )
    for line in process.stdout:
        if line.startswith("training"):
            break
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said[-3000:]
    assert "interrupted; the same command goes on from here" in said and "Traceback" not in said


def test_training_stops_when_held_out_text_gets_no_better(small_base, tmp_path, monkeypatch):
    """Also if it is killed right after: nothing is trained beyond."""
    given = config(
        small_base, tmp_path, steps=400, evaluations=100, patience=2, learning_rate=0.3, warmup=0
    )

    def dies(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(saving, "trained", dies)
        train(given)
    log = json.loads((tmp_path / "out" / "cpt" / "log.json").read_text())
    found = {e["step"]: e["eval_bits_per_byte"] for e in log if "eval_bits_per_byte" in e}
    best = min(found, key=found.get)
    assert max(found) < 400 and list(found)[-3] == best
    train(given)
    step = json.loads((tmp_path / "out" / "cpt" / "finished.json").read_text())["step"]
    assert step == best
    assert measured(tmp_path)["held_out"]["after"] == pytest.approx(found[best], rel=1e-5)


# ---------------------------------------------------------------- ways to train


def test_adapters_are_merged(small_base, tmp_path):
    given = config(small_base, tmp_path, lora_rank=4, learning_rate=3e-2)
    train(given)
    before, after = weights(Path(small_base)), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "proj" in name}
    assert not list((tmp_path / "out").glob("adapter*"))
    numbers = measured(tmp_path)["held_out"]
    assert numbers["after"] < numbers["before"]


def test_english_is_mixed_in(small_base, tmp_path, capsys):
    write_text(tmp_path / "english.txt", 30, ENGLISH)
    given = config(small_base, tmp_path, english=str(tmp_path / "english.txt"), ratio="2:1")
    train(given)
    said = capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "cpt" / "data" / "report.json").read_text())
    assert report["english"]["lines"] == 30
    rows = -(-report["text"]["tokens"] // 32)
    assert f"{rows} rows and {round(rows / 2)} of English" in said
    assert "all English there is, is read" in said


def test_held_out_text_is_kept_out_of_english(small_base, tmp_path):
    english = write_text(tmp_path / "english.txt", 30, ENGLISH)
    text = write_text(tmp_path / "text.txt").read_text()
    (tmp_path / "test.txt").write_text(write_text(tmp_path / "other.txt", 5, seed=1).read_text())
    english.write_text(english.read_text() + (tmp_path / "test.txt").read_text() + text)
    train(config(small_base, tmp_path, english=str(english), test=str(tmp_path / "test.txt")))
    data = tmp_path / "out" / "cpt" / "data"
    report = json.loads((data / "report.json").read_text())
    found = report["english"]
    near = found["dropped"]["near held-out text"]["lines"]
    assert near == 5 + report["text"]["held out"]
    assert found["kept"] == found["lines"] - near == 430 - report["text"]["held out"]
    tokens = found["bytes"] / found["bytes per token"]
    assert tokens == pytest.approx(found["tokens per character"] * found["characters"])


def test_only_as_much_english_is_read_as_is_needed(small_base, tmp_path):
    write_text(tmp_path / "english.txt", 4000, ENGLISH)
    given = config(small_base, tmp_path, english=str(tmp_path / "english.txt"), steps=1)
    train(given)
    english = json.loads((tmp_path / "out" / "cpt" / "data" / "report.json").read_text())["english"]
    assert english["tokens wanted"] <= english["tokens"] and english["lines"] < 3000


@pytest.mark.parametrize(
    "more",
    [
        {"precision": "bf16", "dtype": "bfloat16"},
        {"gradient_checkpointing": True, "lora_rank": 2},
        {"nfc": True, "deduplicate": False, "max_bytes": 9000, "dtype": "float16"},
    ],
)
def test_other_ways(small_base, tmp_path, more):
    train(config(small_base, tmp_path, steps=3, **more))
    dtypes = {str(w.dtype).removeprefix("torch.") for w in weights(tmp_path / "out").values()}
    assert dtypes == {more.get("dtype", "float32")}
    numbers = measured(tmp_path)["held_out"]
    assert numbers["after"] < numbers["before"]
    text = json.loads((tmp_path / "out/cpt/data/report.json").read_text())["text"]
    assert (text["lines"] < 400) == ("max_bytes" in more)


def test_two_processes_train_on_the_batches_of_one(done, tmp_path):
    given, folder, _ = done
    (tmp_path / "cpt.yaml").write_text(yaml.safe_dump({**given, "output": str(tmp_path / "out")}))
    ended = program(
        *LAUNCH, "-m", "trimix_lm_eval", "cpt", str(tmp_path / "cpt.yaml"), PYTHONPATH="."
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.count("12 steps of 4 x 32") == 1, "one process tells"
    for name in ("log.json", "data/report.json"):
        assert (tmp_path / "out" / "cpt" / name).exists()
    logs = [json.loads((f / "out" / "cpt" / "log.json").read_text()) for f in (tmp_path, folder)]
    for mine, alone in zip(*logs, strict=True):
        assert mine.keys() == alone.keys()
        for key in ("loss", "eval_loss", "grad_norm"):
            if key in mine:
                assert mine[key] == pytest.approx(alone[key], rel=1e-4), (key, mine["step"])
    assert difference(tmp_path / "out", folder / "out") < 1e-4


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
        RuntimeError("PytorchStreamWriter failed writing file data/1: file write failed"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
)
def test_a_full_disk_is_named_whoever_finds_it(small_base, tmp_path, monkeypatch, error):
    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(TrimixError, match="out cannot be written"):
        train(config(small_base, tmp_path))


@pytest.mark.parametrize("size", [20_000, 60_000, 120_000, 200_000])
def test_files_that_may_not_grow_further_are_named(small_base, tmp_path, size):
    """As on a full disk, with the system itself refusing: text, weights, optimizer in turn."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    given = config(small_base, tmp_path, steps=1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        with pytest.raises(TrimixError, match="out/?.* cannot be written: .*"):
            train(given)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    train(given)


def test_a_folder_that_is_deleted_meanwhile_is_named(small_base, tmp_path, monkeypatch):
    """Whatever errno the system has for it."""

    def fails(*args, **kwargs):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "out/cpt/x")

    monkeypatch.setattr(trainer, "make", fails)
    with pytest.raises(TrimixError, match="out cannot be written: .*No such file.*out/cpt/x"):
        train(config(small_base, tmp_path))


def test_other_faults_are_not_taken_for_a_full_disk(small_base, tmp_path, monkeypatch):
    def fails(*args, **kwargs):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        train(config(small_base, tmp_path))


def test_a_folder_in_use(small_base, tmp_path):
    given = config(small_base, tmp_path)
    (tmp_path / "out" / "cpt").mkdir(parents=True)
    with (
        FileLock(tmp_path / "out" / "cpt" / ".lock"),
        pytest.raises(TrimixError, match="in use by another run"),
    ):
        train(given)


def test_text_of_which_nothing_is_left(small_base, tmp_path):
    (tmp_path / "text.txt").write_bytes("some text, of another encoding\n".encode("utf-16") * 99)
    with pytest.raises(TrimixError, match="no text is left of .*broken UTF-8"):
        train(config(small_base, tmp_path))
    (tmp_path / "text.txt").write_text("a line\n")
    with pytest.raises(TrimixError, match="1 document: too few to hold any out"):
        train(config(small_base, tmp_path))


def test_reporters_that_are_not_installed(small_base, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "find_spec", lambda name: None)
    with pytest.raises(TrimixError, match=r"pip install 'trimix-lm-eval\[cpt\]'"):
        train(config(small_base, tmp_path, report_to="tensorboard"))


def test_adapters_without_peft_name_the_extra_and_weights_do_not_need_it(
    small_base, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "peft", None)  # as if it were not installed
    with pytest.raises(TrimixError, match=r"with peft.*\n  -> pip install 'trimix-lm-eval\[cpt\]'"):
        train(config(small_base, tmp_path, lora_rank=2))
    assert not (tmp_path / "out").exists()
    train(config(small_base, tmp_path, steps=1))


def test_a_model_that_does_not_fit(small_base, tmp_path, monkeypatch):
    given = config(small_base, tmp_path)
    monkeypatch.setattr(memory, "free_memory", lambda names: dict.fromkeys(names, 300_000))
    with pytest.raises(TrimixError, match="needs .* GiB on cpu .*\n  -> lora_rank: 16"):
        train(given)
    train({**given, "lora_rank": 2, "output": str(tmp_path / "lora"), "steps": 1})


def test_a_base_whose_files_are_damaged_is_refused(small_base, tmp_path):
    def copied(name, change):
        folder = Path(shutil.copytree(small_base, tmp_path / name))
        change(folder)
        return {"base": str(folder), "output": str(tmp_path / f"{name}-out")}

    def truncate(folder):
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1000])

    def lose(folder):
        tensors = load_file(folder / "model.safetensors")
        del tensors["model.layers.1.mlp.up_proj.weight"]
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    def pickled(folder):
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(b"no pickle")

    def unmarked(folder):
        file = folder / "tokenizer_config.json"
        known = json.loads(file.read_text())
        file.write_text(json.dumps({**known, "bos_token": None, "eos_token": None}))

    def negative(folder):
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "max_position_embeddings": -1}))

    def no_numbers(folder):
        tensors = load_file(folder / "model.safetensors")
        tensors["model.norm.weight"] *= float("nan")
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    for change, message in (
        (truncate, "truncate.*model.safetensors is damaged or cut off"),
        (lose, "lack 1 of .* tensors: model.layers.1.mlp.up_proj.weight"),
        (pickled, "weights of .*pickled.* cannot be loaded: a .bin file of them is damaged"),
        (unmarked, "neither a BOS nor an EOS token"),
        (negative, "max_position_embeddings=-1 is no number of tokens"),
        (no_numbers, "are NaN or infinite in 1 tensors: model.norm.weight"),
    ):
        with pytest.raises(TrimixError, match=message) as caught:
            train({**config(small_base, tmp_path), **copied(change.__name__, change)})
        assert "weights_only" not in str(caught.value)


def test_tied_weights_are_not_missing(pico, tmp_path):
    train(config(pico("qwen2", padded=False)["small_base"], tmp_path, steps=1))
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_a_gpu_that_runs_out_of_memory(small_base, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(bases, "load", full)
    with pytest.raises(TrimixError, match="write micro_batch: 4"):
        train(config(small_base, tmp_path))


def test_text_in_the_wrong_script_is_warned_of(small_base, tmp_path, capsys):
    train(config(small_base, tmp_path, steps=1, language="uig_Arab"))
    said = capsys.readouterr().out
    assert "warning: 0% of the letters are Arabic, the script of uig_Arab" in said
    assert "warning: 1 step will hardly train the model" in said
    assert os.environ.get("TENSORBOARD_LOGGING_DIR") is None


@pytest.mark.parametrize(("bits", "warned"), [(2.5, False), (11.7, True)])
def test_a_base_that_knows_nothing_of_the_text_is_told(bits, warned):
    lines = list(report.of_base({"held_out": bits, "test": 1.0}))
    assert lines[0] == f"before     {bits:.4f} bits per byte of held-out text"
    assert bool(lines[1:]) == warned


def test_a_tokenizer_that_knows_no_pieces_of_the_script_is_warned_of(small_base, tmp_path, capsys):
    words = ["తెలుగు", "పద్యము", "రాజు", "పూలు", "వాన", "నది", "ఇల్లు", "చెట్టు", "పాట", "మాట"]
    write_text(tmp_path / "text.txt", words=words)
    train(config(small_base, tmp_path, language="tel_Telu", steps=2))
    said = capsys.readouterr().out
    assert "warning: the tokenizer cuts a character into" in said and "max_bytes" in said
