"""What a run is called: its policy, its point, and every option that is not the usual one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trimix_lm_eval.analysis.results.results_file import ResultsFile
from trimix_lm_eval.analysis.results.values import mapping
from trimix_lm_eval.fusion import policies
from trimix_lm_eval.fusion.policies.fixed import Fixed, point_of
from trimix_lm_eval.utils.paths import named, shown

#: Of the points that have names of their own, those that are one model alone.
SINGLE = tuple(
    cls.name
    for cls in policies.registered()
    if (point := point_of(cls.name))
    and sum(weight != 0 for weight in point.by_source().values()) == 1
)

#: What the seed and the mask's source are if nobody says otherwise: not worth a mention.
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


def label(run: ResultsFile) -> str:
    """The policy or point, or the model's name; behind it what is not usual."""
    if not run.trimix:
        name = shown(str(run.raw.get("model_name") or run.config.get("model") or run.path.stem))
        args = run.model_args
        extra = [f"{key}={_value(args[key])}" for key in _OF_OTHERS if args.get(key) is not None]
    else:
        name = str(run.policy)
        if name == Fixed.name and run.weights is not None:
            name = f"{name} {run.weights.label()}"
        seed = run.trimix.get("seed", _USUAL_SEED)
        seeds = [] if seed == _USUAL_SEED else [f"seed {seed}"]
        extra = [*_of_policy(mapping(run.trimix.get("policy"))), *circumstances(run), *seeds]
    return f"{name} ({', '.join(extra)})" if extra else name


def is_named_model(run: ResultsFile, paths: set[str]) -> bool:
    """Whether a run of lm-eval's own models is of one of these, just as it is named."""
    name = named(str(run.raw.get("model_name")).rstrip("/"))
    changed = any(run.model_args.get(key) is not None for key in _OTHER_MODEL)
    return name in {path.rstrip("/") for path in paths} and not changed


def circumstances(run: ResultsFile) -> Iterator[str]:
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


def title(run: ResultsFile) -> str:
    """What a report calls it: `label`, with what its policy wants to be called for its name.

    A policy of this package says so by its class, one of others by what the file records: reading
    a results file imports nothing that it names.
    """
    name = str(run.policy)
    cls = policies.ours(name)
    told = cls.label if cls else mapping(run.trimix.get("policy")).get("label")
    return label(run).replace(name, str(told or f"TriMix {name}"), 1)


def honesty(run: ResultsFile) -> str:
    """How its policy is honest, one of `HONESTY`; empty if nobody says.

    Of a policy of this package its class tells, of one of others the file.
    """
    cls = policies.ours(str(run.policy))
    told = cls.honesty if cls else mapping(run.trimix.get("policy")).get("honesty")
    return str(told) if told in policies.HONESTY else ""


def _of_policy(policy: dict[str, Any]) -> Iterator[str]:
    """What distinguishes a policy from the same with its usual options."""
    told = policy.get("differing")
    cls = policies.ours(str(policy.get("name")))
    if isinstance(told, list):
        yield from map(str, told)
    elif cls:  # of a version that did not record it
        if policy.get("optimum") == "newton":
            yield "newton"
        yield from cls.differing(policy)
