"""`SweepLM`: many variants as one model of lm-eval, which is asked as one of them at a time.

When the first variant is asked a kind of request, all variants are answered, in one pass of the
sources where that is possible, and every answer goes to the journal at once. The others, and a
rerun, are answered from there: what a variant tells of its weights is in its answers, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from lm_eval.api.instance import Instance

from trimix_lm_eval.engine.sequence import recorded
from trimix_lm_eval.fusion.weights import Weights
from trimix_lm_eval.harness import task_weights
from trimix_lm_eval.harness.base_lm import Identity, Tally, TextLM, label
from trimix_lm_eval.harness.lm import counts, identified, naming, question_of, sampling_params
from trimix_lm_eval.harness.response_cache import TaskPoint
from trimix_lm_eval.harness.weights_log import WeightsLog
from trimix_lm_eval.llm import TriMix
from trimix_lm_eval.loading.provenance import text_digest
from trimix_lm_eval.sweep import answers
from trimix_lm_eval.sweep.answers import Answer, KeyedRequest
from trimix_lm_eval.sweep.journal import Journal, Row
from trimix_lm_eval.sweep.plan import SweepVariant
from trimix_lm_eval.utils.distributed import DistributedEnv
from trimix_lm_eval.utils.progress import progress_bar


class VariantRun(NamedTuple):
    """A variant that is run, the digest of its identity, and what its results note of the sweep."""

    variant: SweepVariant
    digest: str
    noted: dict[str, Any]


class SweepLM(TextLM):
    """Some variants over common sources.

    Args:
        model: With a config for each run, in their order.
        env: Of this process.
        runs: The variants.
        journal: Holds their answers.
        log: Of the weights of every request, written as a variant is evaluated.
        title: Of the progress bars.
        data: The benchmarks' files that the tasks were made from.
    """

    def __init__(
        self,
        model: TriMix,
        env: DistributedEnv,
        runs: Sequence[VariantRun],
        journal: Journal,
        log: WeightsLog,
        title: str,
        data: dict[str, Any],
    ) -> None:
        super().__init__(model, env)
        self.runs, self.journal = runs, journal
        self.title, self.data, self._log = title, data, log
        self._asked: dict[str, list[KeyedRequest]] = {}
        self._points: dict[tuple[int, str], TaskPoint] = {}
        self._long: dict[bytes, bool] = {}
        self.become(0)

    def become(self, which: int) -> None:
        """Answer as this variant from now on."""
        self.which = which
        self.total = None
        self._chosen: dict[tuple[str, int], str] = {}
        self._finish_reasons: dict[Identity, str] = {}
        self._nlls: dict[tuple[str, int], tuple[float, ...]] = {}
        self._truncated = 0
        self.description = self.model.describe(which)
        self._log.begin(self.description)

    # ---------------------------------------------------------------- the three request types

    def loglikelihood(self, requests: list[Instance], **_: Any) -> list[tuple[float, bool]]:
        """Score continuations; see `LM.loglikelihood`."""
        if self.model.settings.enable_thinking:
            self.refuse_thinking(requests)
        return [(value, greedy) for value, greedy in self._answers("loglikelihood", requests)]

    def loglikelihood_rolling(self, requests: list[Instance], **_: Any) -> list[float]:
        """Score whole texts; see `LM.loglikelihood_rolling`."""
        return list(self._answers("loglikelihood_rolling", requests))

    def generate_until(self, requests: list[Instance], **_: Any) -> list[str]:
        """Continue prompts; see `LM.generate_until`."""
        return list(self._answers("generate_until", requests))

    def _answers(self, kind: str, requests: Sequence[Instance]) -> Iterator[Any]:
        """One variant's answers; the first time, all variants' are made."""
        if kind not in self._asked:
            params = None
            if kind == "generate_until":
                names, seed = identified(requests), self.model.settings.seed
                params = sampling_params(requests, names, self.tokenizer, seed)
            asked = answers.keyed(kind, requests, params)
            self._long |= {one.key: self._is_long(kind, one) for one in asked}
            self._complete(kind, asked)
            self._asked[kind] = asked
        found = self.journal.answers(self.runs[self.which].digest)
        # They are the requests of the first time, see `LoadedTasks`.
        for one, _ in zip(self._asked[kind], requests, strict=True):
            answer = Answer.decoded(found[one.key])
            self._note(kind, one, answer)
            self._truncated += self._long[one.key] and counts(one.request, one.name)
            yield answer.result

    def _is_long(self, kind: str, asked: KeyedRequest) -> bool:
        """Whether a context is cut; counted here, since a rerun hands on what is missing only."""
        if kind == "loglikelihood":
            return self.model.cuts_pair(*asked.request.args)
        if asked.params is not None:
            return self.model.cuts_prompt(asked.request.args[0], asked.params)
        return False

    # ---------------------------------------------------------------- all variants at once

    def _complete(self, kind: str, asked: Sequence[KeyedRequest]) -> None:
        if kind != "loglikelihood_rolling":  # which has no prompt to choose by
            self._choose_points(asked)
        known = [self.journal.requests(run.digest) for run in self.runs]
        groups = answers.missing(kind, asked, known)
        left = sum(len(which) * len(some) for which, wholes in groups.items() for some in wholes)
        total = len({one.key for one in asked}) * len(self.runs)
        title, off = f"{self.title} {kind}".lstrip(), self.rank != 0 or not left
        done = total - left  # what the journal has
        with progress_bar(None, title, total=total, initial=done, unit="answer", off=off) as bar:
            for which, wholes in groups.items():
                group = [one for whole in wholes for one in whole]
                whole_of = [i for i, whole in enumerate(wholes) for _ in whole]
                rows: dict[int, list[Row]] = {}
                with naming([one.request for one in group]):
                    for i, variant, answer in self._ask(kind, which, group):
                        mine = rows.setdefault(whole_of[i], [])
                        mine.append((self.runs[which[variant]].digest, group[i].key, answer))
                        if len(mine) == len(which) * len(wholes[whole_of[i]]):
                            self.journal.add(mine)
                            bar.update(len(rows.pop(whole_of[i])))

    def _ask(
        self, kind: str, which: tuple[int, ...], group: Sequence[KeyedRequest]
    ) -> Iterator[tuple[int, int, str]]:
        """Yield (place in the group, place among the variants, answer for the journal)."""
        model = self.model if len(which) == len(self.runs) else self.model.part(which)
        requests = [one.request for one in group]
        if kind == "loglikelihood":
            pairs = [request.args for request in requests]
            questions = [question_of(request) for request in requests]
            points = self._points_for(which, requests)
            for i, variant, score in model.iter_loglikelihood(pairs, points, questions):
                result: Any = (score.log_likelihood, score.is_greedy)
                yield i, variant, Answer(result, score.choice).encoded()
        elif kind == "loglikelihood_rolling":
            for i, variant, score in model.iter_rolling([request.args[0] for request in requests]):
                yield i, variant, Answer(score.log_likelihood, score.choice).encoded()
        else:
            prompts = [(one.request.args[0], one.params) for one in group if one.params is not None]
            for i, variant, made in model.iter_generate(prompts, self._points_for(which, requests)):
                reason = recorded(made.finish_reason, made.unfinished_thought)
                yield i, variant, Answer(made.text, made.choice, reason).encoded()

    # ---------------------------------------------------------------- one point per task

    def _choose_points(self, asked: Sequence[KeyedRequest]) -> None:
        """The points of policies that choose by task, from prompts of all processes."""
        by_task = {
            which: config.policy
            for which, config in enumerate(self.model.configs)
            if config.policy.scope == "task"
        }
        if not by_task:  # on every process alike
            return
        arrived = task_weights.prompts([one.request for one in asked], self.model.settings.seed)
        most = max(policy.task_prompts for policy in by_task.values())
        for task, prompts in task_weights.drawn(arrived, most, self.world_size).items():
            for which, policy in by_task.items():
                read = dict(list(prompts.items())[: policy.task_prompts])
                self._points[which, task] = self._point(which, task, read)

    def _point(self, which: int, task: str, read: dict[int, str]) -> TaskPoint:
        """A variant's point for a task, which a rerun keeps."""
        drawn = {place: text_digest(text) for place, text in read.items()}
        key, digest = answers.key("point", task, drawn), self.runs[which].digest
        stored = self.journal.answer(digest, key)
        if stored is None:
            title = None if self.rank else f"{self.title} {task}: weights".lstrip()
            # What is kept of a prompt would be of no use to other variants, and rounds otherwise: a
            # number of one variant must not depend on which others run.
            choice = self.model.choose_for_task(list(read.values()), which, title, keeping=False)
            stored = Answer(None, choice).encoded()
            self.journal.add([(digest, key, stored)])
        kept = Answer.decoded(stored).choice
        assert kept is not None
        return TaskPoint(kept.weights, drawn)

    def _points_for(
        self, which: Sequence[int], requests: Sequence[Instance]
    ) -> list[tuple[Weights | None, ...]] | None:
        """For each request one point, or none, for each variant; nothing if all choose anew."""
        if not any(variant in which for variant, _ in self._points):
            return None
        return [
            tuple(
                point.weights if (point := self._points.get((i, str(r.task_name)))) else None
                for i in which
            )
            for r in requests
        ]

    # ---------------------------------------------------------------- what is recorded

    def _note(self, kind: str, one: KeyedRequest, answer: Answer) -> None:
        """Take down what an answer says of its weights and of its end."""
        request, (_, choice, reason) = one.request, answer
        if not counts(request, one.name):
            return
        if reason is not None:
            self._finish_reasons[one.name] = reason
        if choice is None:
            return
        policy = self.runs[self.which].variant.policy
        task, doc = str(request.task_name), int(request.doc_id or 0)
        self._chosen[task, doc] = label(policy, choice.weights)
        prompted = kind != "loglikelihood_rolling"
        if prompted and choice.nlls is not None and policy.prompt_nll:
            self._nlls.setdefault((task, doc), choice.nlls)
        self._log.write(one.name, kind, choice, reason)

    def tally(self) -> Tally:
        """What this process has counted for the variant."""
        stats = self.model.speculation.stats
        costs = self.model.costs(self.which)
        return Tally(self._chosen, self._finish_reasons, self._truncated, stats, self._nlls, costs)

    def get_model_info(self) -> dict[str, Any]:
        """What a plain run of the variant records, and the sweep."""
        points = {task: point for (i, task), point in self._points.items() if i == self.which}
        info = self.info(self.description, points, self.data)
        run, tally = self.runs[self.which], self.total or self.tally()
        labels = [point.label() for point in run.variant.policy.points()]
        if tally.nlls:
            info["trimix"]["prompt_nll"] = _means(tally.nlls, labels)
        info["trimix"]["sweep"] = run.noted
        return info


def _means(
    nlls: dict[tuple[str, int], tuple[float, ...]], labels: Sequence[str]
) -> dict[str, dict[str, float]]:
    """By task and point, the mean over documents, in whatever order they were answered."""
    by_task: dict[str, list[tuple[float, ...]]] = {}
    for (task, _), values in sorted(nlls.items()):
        by_task.setdefault(task, []).append(values)
    return {
        task: {
            label: math.fsum(column) / len(column)
            for label, column in zip(labels, zip(*rows, strict=True), strict=True)
        }
        for task, rows in by_task.items()
    }
