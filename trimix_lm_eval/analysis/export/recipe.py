"""The ``lm_eval run --config`` file that repeats a run, with every source at its commit.

Taken from what the run recorded, not from what it was asked for: defaults are written out, branches
become commits. Left out is what changes no number and is nobody's business (paths, logs), and what
would run code because a results file says so (`loading.recorded`): a comment names that.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from trimix_lm_eval.analysis.export.origins import benchmark, local_name, sources_of
from trimix_lm_eval.analysis.results import Run
from trimix_lm_eval.fusion import policies
from trimix_lm_eval.fusion.policies import RECORDED
from trimix_lm_eval.fusion.weights import PAPER_GRID
from trimix_lm_eval.loading import recorded

#: Arguments of which nothing is said where they are left out: places on the machine, secrets.
_PRIVATE = ("weights_log", "token", "cache_dir")
#: What versions before recorded of every choice on a grid, and no version takes any more.
_DROPPED = ("optimum", "grid")
_SEEDS = ("random_seed", "numpy_seed", "torch_seed", "fewshot_seed")


def config(run: Run) -> dict[str, Any]:
    """The content of the file of a run that may be exported: lm-eval's keys."""
    made: dict[str, Any] = {
        "model": "trimix",
        "model_args": arguments(run),
        "tasks": asked(run),
    }
    shots = {benchmark(run, task).shots for task in run.scores}
    if len(shots) == 1:
        made["num_fewshot"] = shots.pop()
    if run.config.get("batch_size"):
        made["batch_size"] = run.config["batch_size"]
    if all(isinstance(run.config.get(name), int) for name in _SEEDS):
        made["seed"] = [run.config[name] for name in _SEEDS]
    return {**made, "output_path": "results", "log_samples": True}


def asked(run: Run) -> list[str]:
    """What to give to ``--tasks``: groups, and the tasks that are in none of these."""
    below = {name for group in run.groups for name in run.below(group)}
    return [name for name in (*run.groups, *run.scores) if name not in below]


def text(run: Run) -> str:
    """The file, with what a reader must know as comments."""
    import yaml

    lines = [f"# {run.label}: lm_eval run --config <this file>"]
    for role, origin in sources_of(run).items():
        if not origin.commit:
            lines.append(f"# {role}: the folder {origin.name}, {origin.revision}")
    for task in run.scores:
        lines.append(f"# {task}: {benchmark(run, task).shots}-shot")
    left_out = sorted(run.model_args.keys() - _usable(run) - set(_PRIVATE))
    if left_out:
        told = ", ".join(left_out)
        lines.append(f"# the run had more in model_args, to be added by who trusts it: {told}")
    if _place(run):
        lines.append(f"# policy={_place(run)} is code that does not come with trimix-lm-eval")
    # A name with a line break must not become a line of YAML.
    lines = [" ".join(line.split()) for line in lines]
    body = yaml.safe_dump(config(run), sort_keys=False, allow_unicode=True)
    return "\n".join(lines) + "\n" + body


def arguments(run: Run) -> dict[str, Any]:
    """``model_args``: as given, with policy, seed and revisions as recorded."""
    args = {key: _public(v) for key, v in run.model_args.items() if key in _usable(run)}
    # `large_ins` is another name of `pretrained`; a file with both would contradict itself.
    large = args.pop("large_ins", None)
    if large is not None:
        args.setdefault("pretrained", large)
    policy = run.trimix["policy"]
    _set(args, "policy", _place(run) or policy["name"])
    for option, value in policy.items():
        if option in _usable(run) and (option, value) != _DROPPED:
            _set(args, option, _grid(run) if option == "grid" else value)
    # The context length, too: a sweep's is that of its shortest source, which a recipe of one model
    # would not load.
    for option in ("plausibility", "plausibility_source", "seed", "max_length"):
        if option in run.trimix:
            _set(args, option, run.trimix[option])
    for role, origin in sources_of(run).items():
        if origin.commit:
            args[f"{role}_revision"] = origin.commit
    return args


def _usable(run: Run) -> set[str]:
    """The arguments that a file made of results may hold."""
    own = run.trimix["policy"].keys() - recorded.OF_EVERY_POLICY - set(RECORDED)
    cls = policies.ours(str(run.trimix["policy"]["name"]))
    declared = [field.name for field in dataclasses.fields(cls)] if cls else []
    return {*recorded.USABLE, *own, *declared}


def _place(run: Run) -> str:
    """Where the class of the run's policy is, if it is none of this package."""
    policy = run.trimix["policy"]
    return "" if policies.ours(str(policy["name"])) else str(policy.get("class") or "")


def _set(args: dict[str, Any], name: str, value: Any) -> None:
    """Put an argument in its place; None takes it out."""
    if value is None:
        args.pop(name, None)
    else:
        args[name] = value


def _grid(run: Run) -> str:
    return "paper" if run.grid == list(PAPER_GRID) else ";".join(w.label() for w in run.grid)


def _public(value: Any) -> Any:
    """A value without the path of a machine: of a folder only the last part of its name."""
    if isinstance(value, str) and value.startswith(("/", "~", ".", "\\")):
        return local_name(value)
    return value
