"""What lm-eval asks of a model besides answers: text, processes, and what the results record."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import simple_parse_args_string

from trimix_lm_eval import __version__
from trimix_lm_eval.engine.sequence import told
from trimix_lm_eval.engine.spec_decode import SpecDecodingStats
from trimix_lm_eval.fusion.policies import Policy
from trimix_lm_eval.fusion.weights import Weights
from trimix_lm_eval.harness.response_cache import TaskPoint
from trimix_lm_eval.llm import TriMix
from trimix_lm_eval.loading.run_config import usable
from trimix_lm_eval.utils import distributed, errors
from trimix_lm_eval.utils.distributed import DistributedEnv

#: What tells a request from all others: task, document, option, and which repetition it is.
Identity = tuple[str | None, int | None, int, int]

T = TypeVar("T", bound="TextLM")


class Tally(NamedTuple):
    """What is counted while requests are answered; each process counts its share.

    Attributes:
        chosen: By task and document, the label of the point.
        finish_reasons: By request (its task first), why its text ended, see `recorded`.
        truncated: Requests whose context was cut.
        stats: What came of drafting.
        nlls: By task and document, the mean NLL of the prompt under every point of the grid; a
            sweep keeps them.
        costs: Of choosing among texts, see `TriMix.costs`.
    """

    chosen: dict[tuple[str, int], str]
    finish_reasons: dict[Identity, str]
    truncated: int
    stats: SpecDecodingStats
    nlls: dict[tuple[str, int], tuple[float, ...]]
    costs: Counter[tuple[str, str]]

    @classmethod
    def over(cls, parts: Iterable[Tally]) -> Tally:
        """All processes together."""
        total = cls({}, {}, 0, SpecDecodingStats(), {}, Counter())
        for part in parts:
            total = cls(
                total.chosen | part.chosen,
                total.finish_reasons | part.finish_reasons,
                total.truncated + part.truncated,
                total.stats.plus(part.stats),
                total.nlls | part.nlls,
                total.costs + part.costs,
            )
        return total


def by_source(costs: Counter[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """Costs as results have them: what, and of it how much each source."""
    told: dict[str, dict[str, int]] = {}
    for (what, source), count in sorted(costs.items()):
        told.setdefault(what, {})[source] = count
    return told


def label(policy: Policy, weights: Weights) -> str:
    """A point of a grid by its name; any other to the nearest tenth."""
    if weights not in policy.points():
        alpha, beta = round(weights.alpha, 1), round(weights.beta, 1)
        gamma = None if weights.gamma is None else round(weights.gamma, 1)
        weights = Weights(alpha, beta, None if gamma == alpha else gamma)
    return weights.label()


class TextLM(TemplateLM):
    """A `TriMix` on a process as lm-eval sees it, but for the answers."""

    backend = "causal"

    def __init__(self, model: TriMix, env: DistributedEnv) -> None:
        super().__init__()
        self._rank, self._world_size = env.rank, env.world
        self.model = model
        self.tokenizer = model.tokenizer
        self._device = model.sources[0].device
        #: Over all processes, once they have told; None before, and of one process alone.
        self.total: Tally | None = None

    @classmethod
    def create_from_arg_obj(
        cls: type[T], arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> T:
        """Make a model: its own arguments win over lm-eval's flags, which have defaults.

        lm-eval always names a device, cuda:0; where that is not there it is not asked for.

        Args:
            arg_dict: The arguments of ``--model_args``.
            additional_config: lm-eval's ``device``, ``batch_size`` and ``max_batch_size``.
        """
        flags = {k: v for k, v in (additional_config or {}).items() if v is not None}
        errors.install_excepthook()
        flags["device"] = usable(flags.get("device"))
        arguments = {**flags, **arg_dict}
        return cls.class_for(arguments)(**arguments)

    @classmethod
    def class_for(cls: type[T], arguments: Mapping[str, Any]) -> type[T]:
        """The class that the arguments ask for."""
        return cls

    @classmethod
    def create_from_arg_string(
        cls: type[T], arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> T:
        """The same from the arguments as a text, ``a=1,b=2``."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    # ---------------------------------------------------------------- what is recorded

    @abstractmethod
    def tally(self) -> Tally:
        """What this process has counted."""

    def info(
        self,
        description: Mapping[str, Any],
        task_points: Mapping[str, TaskPoint],
        data: Mapping[str, Any],
    ) -> dict[str, Any]:
        """What the results file records: sources, revisions, policy, weights chosen per task.

        The sources that the description (`provenance.describe`) names are those that count.
        """
        model, tally = self.model, self.total or self.tally()
        names = description["sources"]
        sources = [s for s in model.sources if s.name in names]
        histogram: dict[str, Counter[str]] = {}
        for (task, _), label in tally.chosen.items():
            histogram.setdefault(task, Counter())[label] += 1
        ends: dict[str, Counter[str]] = {}
        thoughts: dict[str, int] = {}
        for (name, *_), word in tally.finish_reasons.items():
            reason, unfinished = told(word)
            ends.setdefault(str(name), Counter())[reason] += 1
            if model.thinking is not None:
                thoughts[str(name)] = thoughts.get(str(name), 0) + unfinished
        commit = model.report.commits.get("large_ins") if "large_ins" in names else None
        return {
            "model_num_parameters": sum(s.model.num_parameters() for s in sources),
            "model_dtype": str(sources[0].dtype),
            "model_revision": model.settings.sources["large_ins"].revision,
            "model_sha": commit or "",
            "trimix": {
                "version": __version__,
                **description,
                "weights_chosen": {t: dict(c.most_common()) for t, c in sorted(histogram.items())},
                "finish_reasons": {t: dict(sorted(c.items())) for t, c in sorted(ends.items())},
                "unfinished_thoughts": dict(sorted(thoughts.items())),
                "task_points": {
                    task: point.weights.label() for task, point in sorted(task_points.items())
                },
                "speculation": model.speculation.summary(tally.stats),
                "runtime": model.runtime(names),
                "truncated_requests": tally.truncated,
                **({"sequence": by_source(tally.costs)} if tally.costs else {}),
                "data": dict(sorted(data.items())),
            },
        }

    # ---------------------------------------------------------------- several processes

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Concatenate a tensor over all processes."""
        return distributed.concatenated(tensor, self.world_size)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """Collect an object from every process on ``dst``; None elsewhere.

        What a process counted travels along: `get_model_info` is asked on one process alone, too
        late to ask the others.
        """
        parts = distributed.collected((obj, self.tally()), self.rank, self.world_size, dst)
        if parts is None:
            return None
        self.total = Tally.over(tally for _, tally in parts)
        return [obj for obj, _ in parts]

    def barrier(self) -> None:
        """Wait for all processes."""
        distributed.wait(self.world_size)

    # ---------------------------------------------------------------- text

    @property
    def eot_token_id(self) -> int:
        """End of text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that has no context."""
        return self.model.codec.prefix_id

    @property
    def max_length(self) -> int:
        """Context length in tokens: the smallest of the sources'."""
        return self.model.max_length

    @property
    def max_gen_toks(self) -> int:
        """New tokens where a task names no number."""
        return 256

    @property
    def batch_size(self) -> int:
        """Rows per forward pass."""
        return self.model.batch_size

    @property
    def tokenizer_name(self) -> str:
        """A name for lm-eval's cache of requests."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Token ids of a text."""
        return self.model.codec.encode(string, add_special_tokens)

    def tok_decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens))

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Render a chat; a template that knows no system role gets the chat without it."""
        import jinja2

        thinking = self.model.settings.enable_thinking
        extra = {} if thinking is None else {"enable_thinking": thinking}

        def render(messages: list[dict[str, str]]) -> str:
            return str(
                self.tokenizer.apply_chat_template(
                    messages,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                    **extra,
                )
            )

        if not self.tokenizer.chat_template:
            raise errors.TrimixError(
                "The tokenizer in use has no chat template.",
                "leave out --apply_chat_template, or name the tokenizer of an instruction-tuned "
                "model with tokenizer=",
            )
        try:
            return render(chat_history)
        except jinja2.exceptions.TemplateError as error:
            if not any(message["role"] == "system" for message in chat_history):
                raise errors.TrimixError(
                    f"The chat template fails: {error}",
                    "leave out --apply_chat_template, or try --fewshot_as_multiturn true",
                ) from error
            errors.warn_once("The chat template refuses the system role: it is left out.")
            return render([m for m in chat_history if m["role"] != "system"])

    def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        """What lm-eval's own `loglikelihood` would call, which is not used here."""
        raise NotImplementedError

    def refuse_thinking(self, requests: Sequence[Instance]) -> None:
        """Refuse log-likelihood requests where thinking is switched on, as lm-eval's ``hf`` does.

        Raises:
            TrimixError: Always: the options would be scored in place of the thinking.
        """
        tasks = ", ".join(sorted({str(one.task_name) for one in requests}))
        raise errors.TrimixError(
            f"enable_thinking=true is not for log-likelihood tasks ({tasks}): their options would "
            "be scored in place of the thinking.",
            "run these tasks without it, or with enable_thinking=false",
        )
