"""The requests that lm-eval would make of a run config, without a model that answers them.

lm-eval itself builds them, with its overrides, exemplars, chat templates and limits, and is stopped
before it asks for the first answer.
"""

from __future__ import annotations

import contextlib
import glob
import io
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from trimix_lm_eval import _autoload
from trimix_lm_eval.engine.model_runner import Ensemble, Fuser
from trimix_lm_eval.harness.base_lm import Tally, TextLM
from trimix_lm_eval.loading import run_config
from trimix_lm_eval.loading.codec import TextCodec
from trimix_lm_eval.loading.preflight.report import PreflightReport
from trimix_lm_eval.loading.settings import Settings
from trimix_lm_eval.utils.distributed import DistributedEnv
from trimix_lm_eval.utils.errors import TrimixError, first_line
from trimix_lm_eval.utils.paths import tasks_dir

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

#: So many documents are looked at, of all tasks together, and at least of each; in so many runs of
#: neighbours, since documents that have a text in common lie side by side.
MOST, LEAST, RUNS = 480, 60, 6


class _Source(NamedTuple):
    """What an `Ensemble` and a `Fuser` look at in a source before it runs."""

    name: str
    vocab_size: int
    token_bytes: int
    row_bytes: int
    device: torch.device = torch.device("cpu")
    shares_prefixes: bool = True
    plain: bool = True


class Unloaded:
    """What can be said of a run's model before it is loaded: all but its answers.

    Args:
        variants: The settings; of a sweep those of each variant.
        report: What the preflight found.

    Attributes:
        fuser: Groups requests as that of the run will, with sources that cannot run.
    """

    def __init__(self, variants: Sequence[Settings], report: PreflightReport) -> None:
        asked = variants[0]
        self.settings, self.report, self.tokenizer = asked, report, report.tokenizer
        configs = [one.fusion_config() for one in variants]
        policies = [config.policy for config in configs]
        self.codec = TextCodec(report.tokenizer, asked, policies, report.vocab_size)
        self.max_length = report.max_length
        device = next(iter(report.devices.values()))
        self.batch_size = asked.rows_per_pass(device)
        sources: list[Any] = [
            _Source(one.source, report.vocab_size, one.cache or 0, one.states)
            for one in report.estimates
        ]
        self.sources = sources
        self.fuser = Fuser(Ensemble(sources), configs)


class TaskRequests(NamedTuple):
    """The requests of one task that are of one kind.

    Attributes:
        task: Its name.
        kind: The method of lm-eval's model that answers them.
        documents: How many documents the run evaluates.
        seen: The documents that were looked at: all of them, or a sample.
        requests: Those of the documents seen, repeats included.
    """

    task: str
    kind: str
    documents: int
    seen: tuple[int, ...]
    requests: list[Instance]


class PreparedTasks(NamedTuple):
    """What `simple_evaluate` takes for its task manager.

    Attributes:
        loaded: Tasks and groups by name.
        task_index: Where lm-eval found what.
    """

    loaded: Any
    task_index: Any

    def load(self, names: Any) -> Any:
        """The tasks, whatever the names: they are loaded."""
        return self.loaded


class _Built(Exception):
    """lm-eval has built all requests, and asks for the first answers."""


class _Asked(TextLM):
    """Texts can be encoded and chats rendered with it; the first request ends it."""

    def tally(self) -> Tally:
        """Nothing is counted."""
        return Tally.over(())

    def _stop(self, requests: Any, disable_tqdm: bool = False) -> Any:
        raise _Built

    loglikelihood = loglikelihood_rolling = generate_until = _stop


def manager_for(include_path: str | None, names: Iterable[str] | None = None) -> Any:
    """An index of tasks for `load_tasks`: lm-eval's, ours, and the user's, of which a later wins.

    Args:
        include_path: The user's folder.
        names: All that will be asked for. If they are this package's tasks, and the user has no
            folder, lm-eval's thousands are left out, which takes seconds to read.
    """
    _autoload.install()  # so that our tasks are among them, however this was installed
    from lm_eval.tasks import TaskManager

    metadata = {"model": "trimix"}  # an empty mapping would not be shared with the tasks
    if names is not None and include_path is None:
        ours = TaskManager(include_path=str(tasks_dir()), include_defaults=False, metadata=metadata)
        if set(names) <= set(ours.all_tasks):
            return ours
    return TaskManager(include_path=include_path, metadata=metadata)


def load_tasks(manager: Any, names: Sequence[str], metadata: Mapping[str, Any]) -> Any:
    """Load tasks by name, shell pattern, or path to YAML.

    Args:
        manager: lm-eval's index of tasks, see `manager_for`.
        names: As under ``tasks`` in a run config.
        metadata: What the tasks are told of the run.

    Returns:
        What lm-eval's ``TaskManager.load`` returns: tasks and groups by name.

    Raises:
        TrimixError: A task does not exist, or cannot be loaded.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    manager.metadata.clear()  # the manager hands this very mapping to the tasks that it makes
    manager.metadata.update(metadata)
    wanted: list[Any] = []
    for name in names:
        path = name
        found = [] if name.endswith(".yaml") else manager.match_tasks([name])
        if not found and len(names) == 1 and Path(name).is_dir():
            path = f"{name}/*.yaml"
        if path.endswith(".yaml"):
            found = [load_yaml(file, resolve_func=True) for file in sorted(glob.glob(path))]
        if not found:
            raise run_config.no_task(name, manager.all_tasks)
        wanted += [one for one in found if one not in wanted]
    try:
        return manager.load(wanted)
    except TrimixError:
        raise
    except ValueError as error:
        raise TrimixError(f"lm-eval cannot load the tasks: {error}", "correct `tasks`") from error


def build(config: Any, load: Callable[[], Any], model: Unloaded) -> list[TaskRequests]:
    """The requests of a run, as lm-eval makes them.

    Args:
        config: What lm-eval made of the run config.
        load: Returns `PreparedTasks`, or what serves `simple_evaluate` like them.
        model: Says how texts become tokens and chats texts.

    Raises:
        TrimixError: The tasks cannot be loaded, or the requests not be built.
    """
    try:
        with quiet():
            return _built(config, load(), model)
    except TrimixError:
        raise
    except Exception as error:  # a task's own code, or that of a library that reads its data
        raise TrimixError(
            f"The requests cannot be built: {type(error).__name__}: {first_line(error)}",
            "try `lm_eval run` with limit: 1, which tells more",
        ) from error


def _built(config: Any, tasks: Any, model: Unloaded) -> list[TaskRequests]:
    from lm_eval import simple_evaluate
    from lm_eval.evaluator_utils import get_sample_size

    evaluated: dict[str, Sequence[int]] = {}
    for name, task in tasks.loaded["tasks"].items():
        most = get_sample_size(task, config.limit)
        there = range(len(task.eval_docs) if most is None else min(most, len(task.eval_docs)))
        evaluated[name] = (config.samples or {}).get(name, there)
    enough = max(LEAST, MOST // max(1, len(evaluated)))
    seeds = config.seed or [None] * 4
    with contextlib.suppress(_Built):
        simple_evaluate(
            model=_Asked(model, DistributedEnv()),  # type: ignore[arg-type]
            model_args=dict(config.model_args),
            tasks=list(evaluated),
            task_manager=tasks,
            random_seed=seeds[0],
            numpy_random_seed=seeds[1],
            torch_random_seed=seeds[2],
            fewshot_random_seed=seeds[3],
            bootstrap_iters=0,
            samples={name: _sample(places, enough) for name, places in evaluated.items()},
            **{name: getattr(config, name) for name in _PASSED_ON},
        )
    found = []
    for name, task in tasks.loaded["tasks"].items():
        by_kind: dict[str, list[Instance]] = {}
        for one in task.instances:
            by_kind.setdefault(one.request_type, []).extend([one] * (one.repeats or 1))
        docs = tuple(dict.fromkeys(one.doc_id for one in task.instances))
        for kind, some in by_kind.items():
            found.append(TaskRequests(name, kind, len(evaluated[name]), docs, some))
    return found


#: What goes from the config to `simple_evaluate` as it is.
_PASSED_ON = (
    "num_fewshot",
    "system_instruction",
    "apply_chat_template",
    "fewshot_as_multiturn",
    "gen_kwargs",
    "confirm_run_unsafe_code",
    "metadata",
)


def _sample(places: Sequence[int], enough: int) -> list[int]:
    """All of a task's documents or, of many, `RUNS` runs of neighbours, evenly far apart."""
    if len(places) <= enough:
        return list(places)
    starts = [run * len(places) // RUNS for run in range(RUNS)]
    return [place for start in starts for place in places[start : start + enough // RUNS]]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No logs below errors, no prints and no bars of lm-eval."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
