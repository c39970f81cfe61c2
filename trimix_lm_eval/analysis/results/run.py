"""A run: one results file, what to call it, and how it departs from the published protocol.

Longer than most modules: all that is ever read of a results file is read here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimix_lm_eval.analysis.results.files import FILE_PARTS, json_of, text_of
from trimix_lm_eval.analysis.results.scores import MetricValue, is_number, mapping
from trimix_lm_eval.fusion import policies
from trimix_lm_eval.fusion.policies.fixed import Fixed, name_of, point_of
from trimix_lm_eval.fusion.weights import Weights, parse
from trimix_lm_eval.tasklib.catalog import shipped
from trimix_lm_eval.utils.paths import named, shown

#: Of the points that have names of their own, those that are one model alone.
SINGLE = tuple(
    cls.name
    for cls in policies.registered()
    if (point := point_of(cls.name))
    and sum(weight != 0 for weight in point.by_source().values()) == 1
)

#: In the year 5138; what is later is no date.
_LATEST = 1e11

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


@dataclass(frozen=True, eq=False)
class Run:
    """One results file.

    Attributes:
        raw: All of it, as lm-eval wrote it.
        scores: Of every task (not group) its metrics, in the order of the file.
        groups: The same of every group that lm-eval aggregates; its documents are its tasks'.
        lost: What stands in the place of a score and is none, a phrase each.
    """

    path: Path
    raw: dict[str, Any]
    scores: dict[str, list[MetricValue]]
    groups: dict[str, list[MetricValue]] = field(default_factory=dict)
    lost: tuple[str, ...] = ()

    # ---------------------------------------------------------------- the file's keys

    @property
    def config(self) -> dict[str, Any]:
        """lm-eval's ``config``: model, arguments, limit, seeds."""
        return mapping(self.raw, "config")

    @property
    def trimix(self) -> dict[str, Any]:
        """What our model records about a run; empty for other models."""
        return mapping(self.config, "trimix")

    @property
    def sources(self) -> dict[str, dict[str, Any]]:
        """By role, where each model came from; empty for other models."""
        found = {str(role): dict(it) for role, it in (self.trimix.get("sources") or {}).items()}
        for source in found.values():
            if source.get("path") is not None:
                source["path"] = named(str(source["path"]))
        return found

    @property
    def date(self) -> float | None:
        """When it ran, in seconds since 1970; None if the file does not tell, or tells no time."""
        date = self.raw.get("date")
        return float(date) if is_number(date) and 0 <= date < _LATEST else None

    @property
    def file(self) -> str:
        """The file, as pages and tables show it."""
        return shown(self.path, FILE_PARTS)

    @property
    def policy(self) -> str | None:
        """The policy, with the named points by their names; None for other models."""
        name = mapping(self.trimix, "policy").get("name")
        if name == Fixed.name and self.weights is not None:
            return name_of(self.weights)
        return None if name is None else str(name)

    @property
    def weights(self) -> Weights | None:
        """The point of ``policy=fixed`` and of the named points; None for everything else."""
        policy = mapping(self.trimix, "policy")
        if policy.get("name") != Fixed.name:
            return point_of(str(policy.get("name")))
        gamma = policy.get("gamma")
        return _point(policy["alpha"], policy["beta"], None if gamma == policy["alpha"] else gamma)

    @property
    def grid(self) -> list[Weights]:
        """The points that a policy chose from; empty if there is no grid."""
        return [_point(*point) for point in mapping(self.trimix, "policy").get("grid") or []]

    @property
    def model_args(self) -> dict[str, Any]:
        """``--model_args``, which lm-eval records as an object or as the text that was given."""
        given = self.config.get("model_args")
        if isinstance(given, str):
            given = dict(part.partition("=")[::2] for part in given.split(",") if part)
        return mapping(given)

    @property
    def data(self) -> dict[str, dict[str, Any]]:
        """The benchmarks' files, each with where it is from and its SHA-256."""
        return {name: mapping(file) for name, file in mapping(self.trimix, "data").items()}

    @property
    def task_points(self) -> dict[str, Weights]:
        """The points that a policy chose for whole tasks."""
        found = {task: parse(at) for task, at in mapping(self.trimix, "task_points").items()}
        return {task: weights for task, weights in found.items() if weights}

    @property
    def truncated(self) -> int:
        """Requests that were longer than the context, and cut."""
        found = self.trimix.get("truncated_requests")
        return int(found) if is_number(found) else 0

    def chosen(self, task: str) -> dict[str, int]:
        """How often a policy chose each point on a task, by the point's label."""
        return self._counts("weights_chosen", task)

    def finish_reasons(self, task: str) -> dict[str, int]:
        """How many generated texts of a task ended by ``stop``, ``eos`` or ``length``.

        Empty for other tasks, for other models, and for runs of before it was recorded.
        """
        return self._counts("finish_reasons", task)

    def _counts(self, what: str, task: str) -> dict[str, int]:
        counts = mapping(self.trimix, what, task)
        return {name: n for name, n in counts.items() if isinstance(n, int) and n > 0}

    def prompt_nll(self, task: str) -> dict[str, float]:
        """The mean NLL per prompt token of a task under each point, if a sweep recorded it."""
        values = mapping(self.trimix, "prompt_nll", task)
        return {label: float(nll) for label, nll in values.items() if is_number(nll)}

    def task_config(self, task: str) -> dict[str, Any]:
        """A task's YAML, as lm-eval recorded it."""
        return mapping(self.raw, "configs", task)

    def shots(self, task: str) -> int | None:
        """Exemplars in each prompt; None if the file does not tell."""
        shots = mapping(self.raw, "n-shot").get(task)
        return None if shots is None else int(shots)

    def below(self, group: str) -> list[str]:
        """All tasks and groups below a group, in order; empty for a task."""
        members = mapping(self.raw, "group_subtasks")
        found: list[str] = []
        waiting = [group]
        while waiting:
            name = waiting.pop(0)
            if name not in found:
                found.append(name)
                below = members.get(name)
                waiting = [*map(str, below if isinstance(below, list) else []), *waiting]
        return found[1:]

    def leaves(self, group: str) -> list[str]:
        """The tasks below a group that have numbers."""
        return [name for name in self.below(group) if name in self.scores]

    def filtered(self, task: str) -> list[MetricValue]:
        """The number a task is known by under each filter of lm-eval's, `main` first."""
        main = self.main(task)
        found = self.scores.get(task) or self.groups.get(task) or []
        others = [s for s in found if main and s.metric == main.metric and s != main]
        return [main, *others] if main else []

    def main(self, task: str) -> MetricValue | None:
        """The number a task is known by: the first metric that its YAML lists, or of a group."""
        found = self.scores.get(task) or self.groups.get(task) or []
        listed = self.task_config(task).get("metric_list") or []
        first = mapping(listed[0]).get("metric") if listed else None
        return next((s for s in found if s.metric == first), found[0] if found else None)

    def samples(self, task: str) -> list[dict[str, Any]] | None:
        """The logged samples of a task, by document; None if there are none beside the file.

        Raises:
            OSError: The system cannot look for them.
            ValueError: They cannot be read, or not all of them are there (so do `KeyError` and
                `TypeError`, of lines that are JSON but no samples).
        """
        date = self.path.stem.removeprefix("results_")
        file = self.path.parent / f"samples_{task}_{date}.jsonl"
        if "/" in task or not file.is_file():
            return None
        # Not splitlines(): texts may hold the other line ends that Unicode knows.
        found = [json_of(line) for line in text_of(file).split("\n") if line.strip()]
        return sorted(found, key=lambda sample: int(sample["doc_id"]))

    # ---------------------------------------------------------------- what to call it

    @property
    def label(self) -> str:
        """What to call it in a table: the policy or point, or the model's name.

        Behind it, in brackets, every option that is not the usual one.
        """
        if not self.trimix:
            told = self.raw.get("model_name") or self.config.get("model") or self.path.stem
            name, args = shown(str(told)), self.model_args
            extra = [
                f"{key}={_value(args[key])}" for key in _OF_OTHERS if args.get(key) is not None
            ]
        else:
            name = str(self.policy)
            if name == Fixed.name and self.weights is not None:
                name = f"{name} {self.weights.label()}"
            seed = self.trimix.get("seed", _USUAL_SEED)
            seeds = [] if seed == _USUAL_SEED else [f"seed {seed}"]
            extra = [*self._policy_options(), *self._circumstances(), *seeds]
        return f"{name} ({', '.join(extra)})" if extra else name

    @property
    def title(self) -> str:
        """The label, with what the policy wants to be called for its name.

        A policy of this package says so by its class, one of others by what the file records:
        reading a results file imports nothing that it names.
        """
        name = str(self.policy)
        told = self._of_policy("label")
        return self.label.replace(name, str(told or f"TriMix {name}"), 1)

    @property
    def honesty(self) -> str:
        """How the policy is honest, one of `HONESTY`; empty if neither class nor file says."""
        told = self._of_policy("honesty")
        return str(told) if told in policies.HONESTY else ""

    @property
    def cost(self) -> str:
        """What the policy takes beside the forward passes of scoring, as it says itself."""
        return str(self._of_policy("cost") or "")

    def _of_policy(self, what: str) -> Any:
        cls = policies.ours(str(self.policy))
        return getattr(cls, what) if cls else mapping(self.trimix, "policy").get(what)

    @property
    def mask(self) -> float | None:
        """``a`` of the plausibility mask that was asked for, beyond what belongs to the policy."""
        mask = self.trimix.get("plausibility")
        return mask if mask and mask != self._of_policy("plausibility") else None

    @property
    def circumstances(self) -> str:
        """What changes the numbers of any point; runs that differ in it share no plane."""
        return ", ".join(self._circumstances())

    def _circumstances(self) -> Iterator[str]:
        if fusion := self.trimix.get("fusion"):
            yield f"fusion {fusion}"
            if self.trimix.get("candidates"):
                yield f"candidates {self.trimix['candidates']}"
        source = self.trimix.get("plausibility_source") or _USUAL_MASK
        if self.mask:
            yield f"plausibility {self.mask:g}" + (f" of {source}" if source != _USUAL_MASK else "")
        for option in _RECORDED:
            if self.trimix.get(option) is not None:
                yield f"{option} {self.trimix[option]}"
        for option in _GIVEN:
            if self.model_args.get(option) is not None:
                yield f"{option} {_value(self.model_args[option])}"

    def _policy_options(self) -> Iterator[str]:
        """What distinguishes the policy from the same with its usual options."""
        policy = mapping(self.trimix, "policy")
        told = policy.get("differing")
        cls = policies.ours(str(policy.get("name")))
        if isinstance(told, list):
            yield from map(str, told)
        elif cls:  # of a version that did not record it
            if policy.get("optimum") == "newton":
                yield "newton"
            yield from cls.differing(policy)

    def is_named_model(self, paths: set[str]) -> bool:
        """Whether a run of lm-eval's own models is of one of these, just as it is named."""
        name = named(str(self.raw.get("model_name")).rstrip("/"))
        changed = any(self.model_args.get(key) is not None for key in _OTHER_MODEL)
        return name in {path.rstrip("/") for path in paths} and not changed

    # ---------------------------------------------------------------- how it departs

    @property
    def variant(self) -> str:
        """How the whole run departs from the published protocol; empty if it does not.

        Runs of one label with different variants are different rows of a table.
        """
        limit = self.config.get("limit")
        parts = [f"limit {limit:g}"] if limit else []
        if not limit and any(self.documents(task) for task in self.scores):
            parts.append("part of the documents")
        for task in self.scores:
            parts += self._settings(task)
        return ", ".join(dict.fromkeys(parts))

    def deviations(self, task: str) -> list[str]:
        """Why the numbers of a task or group do not compare with those of the published protocol.

        Returns:
            Short phrases for a footnote; empty if nothing was changed. Of tasks that are not ours
            only what lm-eval itself records is known.
        """
        why = self.documents(task)
        for name in self.leaves(task) or [task]:
            why += self._settings(name)
        return list(dict.fromkeys(why))

    def documents(self, task: str) -> list[str]:
        """Of `deviations` that a task or group was not measured on all of its documents."""
        score, limit = self.main(task), self.config.get("limit")
        if score and score.of:
            return [f"{score.n} of {score.of} documents"] if score.n != score.of else []
        if not limit:
            return []
        return [f"limit {limit:g}" if is_number(limit) else f"limit {limit}"]

    def _settings(self, task: str) -> Iterator[str]:
        """What else was changed; of tasks that are not ours only what lm-eval itself records."""
        if self.config.get("gen_kwargs"):
            yield "gen_kwargs changed"
        if self.raw.get("chat_template"):
            yield "chat template"
        if self.raw.get("system_instruction"):
            yield "system instruction"
        config = self.task_config(task)
        exemplars = mapping(config, "metadata").get("exemplars")
        if exemplars not in (None, "train_1"):
            yield f"exemplars {exemplars}"
        ours = shipped().get(task)
        if ours is None:
            return
        shots, usual = self.shots(task), ours.get("num_fewshot") or 0
        if shots is not None and shots != usual:
            yield f"{shots} {'shot' if shots == 1 else 'shots'} in place of {usual}"
        if ours.get("generation_kwargs") != config.get("generation_kwargs"):
            yield "generation_kwargs changed"


def _point(alpha: Any, beta: Any, gamma: Any = None) -> Weights:
    return Weights(float(alpha), float(beta), None if gamma is None else float(gamma))


def _value(value: Any) -> Any:
    """An argument's value; a folder as tables show it."""
    return shown(value) if isinstance(value, str) else value
