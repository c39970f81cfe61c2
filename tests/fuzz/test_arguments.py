"""Every option of every command with anything behind it, and the arguments of the model."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.tasks import TaskManager
from lm_eval.utils import simple_parse_args_string

from tests.analysis.test_export import submittable
from tests.loading.test_hostile_arguments import READABLE
from tests.support import cpt_runs, sweeping
from tests.support.fuzzing import argv_text, budget, command, inside, names, no_hang, values
from tests.support.hostile_values import files
from trimix_lm_eval import TriMix, cli
from trimix_lm_eval.fusion import policies
from trimix_lm_eval.harness import check
from trimix_lm_eval.harness.lm import TriMixLM, read_gen_kwargs
from trimix_lm_eval.loading import settings
from trimix_lm_eval.loading.source_spec import MODEL_OPTIONS, PREFIXES, SOURCE_OPTIONS
from trimix_lm_eval.training.cpt import run as training
from trimix_lm_eval.utils.errors import TrimixError

MODELS = "pretrained=large_ins,small_cpt=small_cpt,small_base=small_base"
SAMPLES = "samples_t_2026-11-01T00-00-00.000000.jsonl"
#: Of each command an ordinary call, in groups: what is changed, doubled or left out at once.
CALLS: dict[str, list[list[str]]] = {
    "check": [["--config", "run.yaml"], ["--model_args", MODELS], ["--metadata", "data_dir=d"]],
    "tasks": [["*_finish"], ["--metadata", "data_dir=d"]],
    "sweep": [["sweep.yaml"], ["--check"]],
    "compare": [["results"], ["--output", "out"], ["--baseline", "ppl"]],
    "report": [["results"], ["--output", "out"], ["--force"]],
    "explain": [
        ["--model_args", MODELS], ["--prompt", "the hen"], ["--continuation", " ran"],
        ["--output", "out/e.html"], ["--json", "out/e.json"],
    ],
    "export": [["results"], ["--to", "csv"], ["--output", "out"], ["--repo", "owner/name"]],
    "leaderboard": [["results"], ["--output", "out"], ["--title", "T"]],
    "cpt": [["cpt.yaml"]],
    "new-language": [
        ["swh_Latn"], ["--text", "text.txt"], ["--base", "small_base"], ["--large", "large_ins"],
        ["--output", "out/language"], ["--name", "N"], ["--english", "text.txt"],
        ["--text-field", "text"], ["--license", "MIT"], ["--force"],
    ],
}  # fmt: skip
#: Other calls that end well, so that what is behind the first checks is met as well.
OTHERS = {
    "explain": [
        ["--model_args", MODELS], ["--prompt-file", "text.txt"], ["--gen_kwargs", "max_gen_toks=2"],
        ["--output", "out/e.html"],
    ],
    "sweep": [["sweep.yaml"]],
    "compare": [
        ["--model_args", MODELS], ["--tasks", "choice"], ["--include_path", "tasks"],
        ["--policies", "ppl,ent"], ["--grid", "paper"], ["--limit", "2"], ["--output", "out"],
    ],
}  # fmt: skip
#: Of arguments, beside those of `names`: files that are there.
KNOWN = [
    *("run.yaml", "sweep.yaml", "cpt.yaml", "text.txt", "results", "large_ins", "odd/loop"),
    *("odd/nowhere", "odd/folder", "odd/device", SAMPLES, "max_gen_toks=2", "temperature=1", "0"),
    *("until=[1]", '{"until": "x"}', "{", "policy=fixed,alpha=1", "all", "card", "text.txt/x"),
]  # fmt: skip


@pytest.fixture(scope="module")
def place(pico, trio, tmp_path_factory):
    """Files for all commands; nothing is trained or asked for, and models are loaded already."""
    loaded = trio("llama").weighted("ppl")

    def load(asked: Any, device: Any = None) -> TriMix:
        return loaded

    with pytest.MonkeyPatch.context() as patch, inside(tmp_path_factory.mktemp("args")) as folder:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        patch.setattr(TriMix, "from_settings", load)
        for owner, name in ((training, "_train"), (TriMix, "load_many")):
            patch.setattr(owner, name, _interrupted)
        sweeping.make_lm_eval_quick(patch)
        sources = pico("llama", padded=False)
        for role, model in sources.items():
            (folder / role).symlink_to(model)
        sweeping.write_tasks(folder / "tasks", ["choice"])
        manager = TaskManager(
            include_path="tasks", include_defaults=False, metadata={"model": "trimix"}
        )
        patch.setattr(check, "_task_manager", lambda *_: manager)
        cpt_runs.write_text(folder / "text.txt", lines=200)
        submittable(folder / "results")
        (folder / "odd").mkdir()
        files(folder / "odd")
        Path(SAMPLES).write_text(
            '{"doc_id": 0, "arguments": [["the hen", " ran"]], "resps": [[[0]]]}\n'
        )
        run = sweeping.config(sources, Path("tasks"), Path("swept"), tasks=["choice"])
        swept = {**run, "sweep": {"policies": ["ppl"], "name": "s"}}
        cpt = {"base": "small_base", "output": "trained", "text": "text.txt"}
        for name, content in (("run", run), ("sweep", swept), ("cpt", cpt)):
            Path(f"{name}.yaml").write_text(yaml.safe_dump(content))
        yield {path: path.read_bytes() if path.is_file() else None for path in Path().iterdir()}


def _interrupted(*_: Any, **__: Any) -> None:
    """In place of what takes seconds and comes after everything that is read."""
    raise KeyboardInterrupt


def options(name: str) -> list[str]:
    """All options of a command, as its parser has them."""
    commands = next(
        a for a in cli._parser([])._actions if isinstance(a, argparse._SubParsersAction)
    )
    return [
        option
        for action in commands.choices[name]._actions
        for option in action.option_strings
        if option not in ("-h", "--help", "--push", "--pr")  # help; and these upload
    ]


OPTIONS = {name: options(name) for name in CALLS}
texts = (names | st.sampled_from(KNOWN)).map(argv_text)


@st.composite
def calls(draw: Any) -> list[str]:
    """A command's arguments with some changes."""
    name = draw(st.sampled_from(sorted(CALLS)))
    groups = [
        list(one) for one in draw(st.sampled_from([CALLS[name], OTHERS.get(name, CALLS[name])]))
    ]
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(groups) - 1)) if groups else 0
        kind = draw(st.sampled_from(("value", "value", "value", "gone", "twice", "more", "option")))
        if kind == "option" or not groups:
            groups.insert(at, [draw(st.sampled_from(OPTIONS[name] or ["-x"])), draw(texts)])
        elif kind == "value":
            groups[at][-1] = draw(texts)
        elif kind == "gone":
            del groups[at]
        elif kind == "twice":
            groups.append(groups[at])
        else:
            groups[at].append(draw(texts))
    return [name, *(word for group in groups for word in group)]


@budget(40)
@given(argv=calls())
def test_commands(place, argv):
    renew(place)
    command(argv)


def renew(place: dict[Path, bytes | None]) -> None:
    """Remove what a case has written, and write again what it has written over."""
    for path in Path().iterdir():
        if path not in place:
            path.unlink() if path.is_symlink() or not path.is_dir() else shutil.rmtree(path)
    for path, content in place.items():
        if content is not None and path.read_bytes() != content:
            path.write_bytes(content)


@pytest.mark.parametrize("name", CALLS)
def test_ordinary_calls_end_well(place, name):
    """Else nothing behind the first check was ever tried."""
    for groups in filter(None, (CALLS[name], OTHERS.get(name))):
        renew(place)
        found = command([name, *(word for group in groups for word in group)])
        runs = groups in (CALLS["cpt"], OTHERS["sweep"], OTHERS["compare"])
        assert found.code == (130 if runs else 0), found


# ---------------------------------------------------------------- arguments of the model

ARGUMENTS = sorted(
    {
        *(one.name for one in (*MODEL_OPTIONS, *settings.RUN_OPTIONS)),
        *(prefix + one.name for prefix in PREFIXES for one in SOURCE_OPTIONS),
        *(option for name in policies.names() for option in policies.option_names(name)),
    }
)
SOUND = {"pretrained": "large_ins", "small_cpt": "small_cpt", "small_base": "small_base"}
policy = st.sampled_from([*policies.names(), "fixed"])


@budget(120)
@given(
    changed=st.dictionaries(st.sampled_from(ARGUMENTS) | names, values, min_size=1, max_size=3),
    policy=policy | values,
)
def test_values_of_model_args(place, changed, policy):
    """As Python and YAML give them."""
    try:
        with no_hang():
            asked = settings.parse({**SOUND, "policy": policy, **changed})
            check._needed(asked)
    except TrimixError as error:
        assert len(str(error)) < READABLE


@budget(40)
@given(
    changed=st.lists(st.tuples(st.sampled_from(ARGUMENTS), texts), min_size=1, max_size=3),
    policy=policy,
)
def test_text_of_model_args(place, changed, policy):
    """As the command line gives them, up to where models would be loaded."""
    text = ",".join([MODELS, f"policy={policy}", *(f"{key}={value}" for key, value in changed)])
    try:
        simple_parse_args_string(text)
    except (ValueError, SyntaxError):
        return  # lm-eval's own refusal
    try:
        with no_hang():
            TriMixLM.create_from_arg_string(text)
    except TrimixError as error:
        assert len(str(error)) < READABLE


GEN_KWARGS = [
    *("until", "max_gen_toks", "max_new_tokens", "max_tokens", "temperature", "do_sample", "top_p"),
    *("top_k", "max_length", "min_p", "num_beams", "repetition_penalty", "seed", "stop", "n"),
]  # fmt: skip


@budget(150)
@given(kwargs=st.dictionaries(st.sampled_from(GEN_KWARGS) | names, values, max_size=3))
def test_generation_arguments(kwargs):
    try:
        with no_hang():
            read_gen_kwargs(kwargs, "</s>", 0)
    except TrimixError as error:
        assert len(str(error)) < READABLE
