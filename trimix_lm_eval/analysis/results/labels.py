"""What a run is called: its policy, its point, and every option that is not the usual one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from trimix_lm_eval.analysis.results.values import mapping
from trimix_lm_eval.fusion.weights import PAPER_GRID
from trimix_lm_eval.utils.paths import named, shown

if TYPE_CHECKING:
    from trimix_lm_eval.analysis.results.run import Run

#: The points that have names of their own, and the policies that are one point.
NAMED = {
    (1.0, 0.0): "large_ins",
    (0.0, 1.0): "small_cpt",
    (0.0, 0.0): "small_base",
    (1.0, 1.0): "proxy_tuning",
}
SINGLE = ("large_ins", "small_cpt", "small_base")

#: What a policy's options, and the seed, are if nobody says otherwise: not worth a mention.
_USUAL = {
    "grid": [list(point) for point in PAPER_GRID],
    "optimum": "grid",
    "prompts": 50,
    "host": "large_ins",
    "scorer": "small_cpt",
    "floor": 0.0,
}
_USUAL_SEED = 1234
_USUAL_MASK = "large_ins"

#: Options of our runs that are None unless somebody asks, and arguments that nobody needs to give.
_RECORDED = ("add_bos_token", "prefix_token_id", "enable_thinking", "think_end_token")
_GIVEN = ("max_length", "tokenizer")

#: Arguments of lm-eval's own models that make another model of the one that is named, and others
#: on which numbers depend. A list of what is shown, since arguments may hold secrets.
_OTHER_MODEL = (
    *("revision", "subfolder", "gguf_file", "peft", "delta"),
    *("load_in_8bit", "load_in_4bit", "quantization", "autogptq", "gptqmodel"),
)
_OF_OTHERS = (*_OTHER_MODEL, "dtype", "softmax_dtype", *_RECORDED, *_GIVEN, "max_model_len")


def label(run: Run) -> str:
    """The policy or point, or the model's name; behind it what is not usual."""
    if not run.trimix:
        name = shown(str(run.raw.get("model_name") or run.config.get("model") or run.path.stem))
        args = run.model_args
        extra = [f"{key}={_value(args[key])}" for key in _OF_OTHERS if args.get(key) is not None]
    else:
        name = str(run.policy)
        if name == "fixed" and run.weights is not None:
            name = f"fixed {run.weights.label()}"
        seed = run.trimix.get("seed", _USUAL_SEED)
        seeds = [] if seed == _USUAL_SEED else [f"seed {seed}"]
        extra = [*_of_policy(mapping(run.trimix.get("policy"))), *circumstances(run), *seeds]
    return f"{name} ({', '.join(extra)})" if extra else name


def is_named_model(run: Run, paths: set[str]) -> bool:
    """Whether a run of lm-eval's own models is of one of these, just as it is named."""
    name = named(str(run.raw.get("model_name")).rstrip("/"))
    changed = any(run.model_args.get(key) is not None for key in _OTHER_MODEL)
    return name in {path.rstrip("/") for path in paths} and not changed


def circumstances(run: Run) -> Iterator[str]:
    """What changes the numbers of any point: runs that differ in it share no plane of weights."""
    mask = run.trimix.get("plausibility")
    source = run.trimix.get("plausibility_source") or _USUAL_MASK
    if mask:
        yield f"plausibility {mask:g}" + (f" of {source}" if source != _USUAL_MASK else "")
    for option in _RECORDED:
        if run.trimix.get(option) is not None:
            yield f"{option} {run.trimix[option]}"
    for option in _GIVEN:
        if run.model_args.get(option) is not None:
            yield f"{option} {_value(run.model_args[option])}"


def _value(value: Any) -> Any:
    """An argument's value; a folder as tables show it."""
    return shown(value) if isinstance(value, str) else value


def _of_policy(policy: dict[str, Any]) -> Iterator[str]:
    """What distinguishes a policy from the same with its usual options."""
    for option, usual in _USUAL.items():
        value = policy.get(option, usual)
        if value == usual or (option == "grid" and policy.get("optimum") == "newton"):
            continue
        if option == "grid":
            yield f"grid of {len(value)}"
        elif option == "optimum":
            yield str(value)
        else:
            yield f"{option} {value}"
