"""Run configs, sweeps and training configs with anything in them: checked, or refused in words."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.tasks import TaskManager

from tests.support import cpt_runs, sweeping
from tests.support.fuzzing import Damage, budget, command, damaged_bytes, inside, mutated
from trimix_lm_eval.harness import check
from trimix_lm_eval.training.cpt import run as training

#: What no mapping writes: aliases without end, merges, tags, keys that are lists.
SNIPPETS = [
    "a: &a [*a]\n", "&a a: *a\n", "<<: {a: 1}\n", "<<: *x\n", "? [a, b]\n: 1\n", "? {a: 1}\n: 2\n",
    "!!python/object/apply:os.system ['true']\n", "tasks: !!set {a}\n", "seed: !!binary aGk=\n",
    "limit: 2024-01-01\n", "limit: 1:30\n", "seed: 0b1\n", "seed: 0o17\n", "limit: .inf\n",
    "seed: !!float 3\n", "1: 2\n", "null: 3\n", ".nan: 1\n", "- a\n", "--- a\n--- b\n",
    "%YAML 9.9\n---\n", "a: &a [1,1]\nb: &b [*a,*a,*a]\nc: &c [*b,*b,*b]\nd: [*c,*c,*c]\n",
    "text: 1\ntext: 2\n", "seed: 1\n",
    "seed: " + "9" * 5000 + "\n", "seed: 0x" + "f" * 5000 + "\n", "limit: !!timestamp 2001-13-01\n",
    "model_args: !function utils.f\n", "\ttab: 1\n", "a: 'x\n", "a: \"\\ud800\"\n", "a: \"\\0\"\n",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(pico, tmp_path_factory):
    """A folder with models, tasks and a text; no network, and of lm-eval's tasks only ours."""
    with pytest.MonkeyPatch.context() as patch, inside(tmp_path_factory.mktemp("yaml")) as folder:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        sweeping.make_lm_eval_quick(patch)
        manager = TaskManager(
            include_path="tasks", include_defaults=False, metadata={"model": "trimix"}
        )
        for role, model in pico("llama", padded=False).items():
            (folder / role).symlink_to(model)
        sweeping.write_tasks(folder / "tasks")
        manager = TaskManager(
            include_path="tasks", include_defaults=False, metadata={"model": "trimix"}
        )
        patch.setattr(check, "_task_manager", lambda *_: manager)
        patch.setattr(training, "_train", _interrupted)
        cpt_runs.write_text(folder / "text.txt", lines=200)
        yield folder


def _interrupted(*_: Any) -> None:
    """In place of training, which costs seconds: all that is read is read before."""
    raise KeyboardInterrupt


RUN = {
    "model": "trimix",
    "model_args": {
        "pretrained": "large_ins", "small_cpt": "small_cpt", "small_base": "small_base",
        "policy": "ppl", "grid": "0.3:0.5;1:1", "dtype": "float32", "max_length": 64, "seed": 3,
        "plausibility": 0.1, "weights_log": "w.jsonl", "speculative": "auto",
    },
    "tasks": ["choice", "free"], "include_path": "tasks", "num_fewshot": 0, "batch_size": 2,
    "max_batch_size": 8, "device": "cpu", "limit": 3,
    "gen_kwargs": {"temperature": 0, "until": ["x"]},
    "seed": [0, 1, 2, 3], "metadata": {"data_dir": "d"}, "output_path": "out", "log_samples": True,
    "system_instruction": "Say it.", "apply_chat_template": False, "fewshot_as_multiturn": False,
    "samples": None, "use_cache": "cache", "cache_requests": False, "verbosity": "INFO",
    "predict_only": False, "wandb_args": {"project": "p"}, "trust_remote_code": False,
}  # fmt: skip
SWEEP = {
    **{key: RUN[key] for key in ("model", "tasks", "include_path", "device", "output_path")},
    "model_args": {"pretrained": "large_ins", "small_cpt": "small_cpt", "small_base": "small_base"},
    "sweep": {
        "name": "s", "grid": {"alpha": [0.3], "beta": [0.5, 1]},
        "policies": ["ppl", {"policy": "ppl", "refine": "quadratic"}, {"policy": "gate"}],
        "plausibility": [None, 0.1], "num_fewshot": [0, None], "seeds": [1],
    },
}  # fmt: skip
LANGUAGES = {
    **SWEEP,
    "tasks": ["shot_{language}"],
    "sweep": {"grid": ["0.3:0.5"], "languages": ["bo", {"language": "ug", "name": "Uyghur"}]},
}
CPT = {
    "base": "small_base", "output": "out", "text": ["text.txt", {"file": "text.txt", "field": "t"}],
    "english": "text.txt", "ratio": "4:1", "held_out": 0.1, "test": None, "language": "swh_Latn",
    "license": "MIT", "text_field": "text", "max_bytes": 10**6, "deduplicate": True, "nfc": False,
    "sequence_length": 32, "batch_tokens": 128, "micro_batch": 4, "epochs": 1, "steps": 12,
    "learning_rate": 1e-2, "min_learning_rate": 1e-4, "warmup": 0.1, "weight_decay": 0.1,
    "lora_rank": 0, "precision": "fp32", "gradient_checkpointing": False, "dtype": "auto",
    "evaluations": 3, "patience": 2, "report_to": [], "seed": 1, "trust_remote_code": False,
}  # fmt: skip


def write(data: st.DataObject, sound: Any, damage: Damage) -> Path:
    """A config with changed entries, damaged bytes, or what only YAML has."""
    for name in ("out", ".out.new"):
        shutil.rmtree(name, ignore_errors=True)
    kind = data.draw(st.sampled_from(("entries", "entries", "entries", "bytes", "snippet")))
    content = data.draw(mutated(sound)) if kind == "entries" else sound
    text = yaml.safe_dump(content, allow_unicode=True, sort_keys=False).encode(
        "utf-8", "surrogatepass"
    )
    if kind == "bytes":
        text = damage(text)
    if kind == "snippet":
        added = data.draw(st.sampled_from(SNIPPETS)).encode()
        text = added + text if data.draw(st.booleans()) else text + added
    file = Path("config.yaml")
    file.write_bytes(text)
    return file


@budget(20)
@given(damage=damaged_bytes(), data=st.data())
def test_run_configs(place, damage: Damage, data):
    command(["check", "--config", str(write(data, RUN, damage))])


@budget(20)
@given(damage=damaged_bytes(), data=st.data())
def test_sweeps(place, damage: Damage, data):
    sound = data.draw(st.sampled_from([SWEEP, LANGUAGES]))
    command(["sweep", "--check", str(write(data, sound, damage))])
    assert not Path("out").exists(), "a look writes nothing"


@budget(12)
@given(damage=damaged_bytes(), data=st.data())
def test_training_configs(place, damage: Damage, data):
    command(["cpt", str(write(data, CPT, damage))])


def test_the_sound_ones_are_accepted(place):
    """Else nothing behind the first check was ever tried."""
    for name, argv, sound, code in (
        ("run", ["check", "--config"], RUN, 0),
        ("sweep", ["sweep", "--check"], SWEEP, 0),
        ("languages", ["sweep", "--check"], LANGUAGES, 0),
        ("cpt", ["cpt"], {**CPT, "text": "text.txt", "output": "a_sound_one"}, 130),
    ):
        Path(f"{name}.yaml").write_text(yaml.safe_dump(sound))
        found = command([*argv, f"{name}.yaml"])
        assert found.code == code, (name, found)
