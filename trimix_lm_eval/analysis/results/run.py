"""A run: one results file, what to call it, and how it departs from the published protocol."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trimix_lm_eval.analysis.results.results_file import ResultsFile, is_number, mapping
from trimix_lm_eval.fusion import policies
from trimix_lm_eval.fusion.policies.fixed import Fixed, point_of
from trimix_lm_eval.tasklib.catalog import shipped
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


@dataclass(frozen=True, eq=False)
class Run(ResultsFile):
    """One results file with its names."""

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
        cls = policies.ours(name)
        told = cls.label if cls else mapping(self.trimix.get("policy")).get("label")
        return self.label.replace(name, str(told or f"TriMix {name}"), 1)

    @property
    def honesty(self) -> str:
        """How the policy is honest, one of `HONESTY`; empty if nobody says.

        Of a policy of this package its class tells, of one of others the file.
        """
        cls = policies.ours(str(self.policy))
        told = cls.honesty if cls else mapping(self.trimix.get("policy")).get("honesty")
        return str(told) if told in policies.HONESTY else ""

    @property
    def circumstances(self) -> str:
        """What changes the numbers of any point; runs that differ in it share no plane."""
        return ", ".join(self._circumstances())

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

    def is_named_model(self, paths: set[str]) -> bool:
        """Whether a run of lm-eval's own models is of one of these, just as it is named."""
        name = named(str(self.raw.get("model_name")).rstrip("/"))
        changed = any(self.model_args.get(key) is not None for key in _OTHER_MODEL)
        return name in {path.rstrip("/") for path in paths} and not changed

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
        exemplars = mapping(config.get("metadata")).get("exemplars")
        if exemplars not in (None, "train_1"):
            yield f"exemplars {exemplars}"
        ours = shipped().get(task)
        if ours is None:
            return
        shots = self.shots(task)
        if shots is not None and shots != (ours.get("num_fewshot") or 0):
            unit = "shot" if shots == 1 else "shots"
            yield f"{shots} {unit} in place of {ours.get('num_fewshot') or 0}"
        if ours.get("generation_kwargs") != config.get("generation_kwargs"):
            yield "generation_kwargs changed"

    def _circumstances(self) -> Iterator[str]:
        mask = self.trimix.get("plausibility")
        source = self.trimix.get("plausibility_source") or _USUAL_MASK
        if mask:
            yield f"plausibility {mask:g}" + (f" of {source}" if source != _USUAL_MASK else "")
        for option in _RECORDED:
            if self.trimix.get(option) is not None:
                yield f"{option} {self.trimix[option]}"
        for option in _GIVEN:
            if self.model_args.get(option) is not None:
                yield f"{option} {_value(self.model_args[option])}"

    def _policy_options(self) -> Iterator[str]:
        """What distinguishes the policy from the same with its usual options."""
        policy = mapping(self.trimix.get("policy"))
        told = policy.get("differing")
        cls = policies.ours(str(policy.get("name")))
        if isinstance(told, list):
            yield from map(str, told)
        elif cls:  # of a version that did not record it
            if policy.get("optimum") == "newton":
                yield "newton"
            yield from cls.differing(policy)


def _value(value: Any) -> Any:
    """An argument's value; a folder as tables show it."""
    return shown(value) if isinstance(value, str) else value
