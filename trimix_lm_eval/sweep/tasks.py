"""A setting's tasks: loaded once, their requests built once, evaluated for every variant.

lm-eval's `simple_evaluate` loads tasks and builds their prompts each time it is called, which for
46 variants costs minutes. It asks a task manager for the tasks; `LoadedTasks` answer in its place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from trimix_lm_eval.harness.requests import load_tasks
from trimix_lm_eval.loading.provenance import text_digest
from trimix_lm_eval.sweep import content
from trimix_lm_eval.sweep.plan import Setting
from trimix_lm_eval.sweep.quiet import named_prompts_bar
from trimix_lm_eval.tasklib import places


class LoadedTasks:
    """What `simple_evaluate` takes for its task manager: the setting's tasks, by lm-eval's manager.

    Attributes:
        loaded: Tasks and groups by name.
        data: The benchmarks' files that were read for them, see `places.USED`.
        counts: By task, how many documents are evaluated.
        digests: By task, its number of documents, and the identities of its definition and of what
            it reads.

    Raises:
        TrimixError: A task does not exist, cannot be loaded, or lacks a document asked for.
    """

    def __init__(self, manager: Any, setting: Setting) -> None:
        self.task_index = manager.task_index
        places.USED.clear()
        self.loaded = load_tasks(manager, setting.tasks, setting.config.metadata)
        self.data = dict(places.USED)
        self._metadata = {
            name: dict(task.config.metadata)
            for name, task in self._all.items()
            if task.config.metadata
        }
        self._of_run = {
            key: value
            for key, value in setting.config.metadata.items()
            if key not in setting.config.model_args
        }
        self.counts: dict[str, int] = {}
        # Now, since tasks change when they are evaluated.
        self.digests = {
            name: self._digest(name, task, setting.config) for name, task in self._all.items()
        }
        for name, task in self._all.items():
            _build_once(name, task)

    @property
    def _all(self) -> dict[str, Any]:
        return dict(self.loaded["tasks"])

    def load(self, names: Any) -> Any:
        """What a task manager returns for the names; here they are known."""
        return self.loaded

    def take(self, model_args: Mapping[str, Any]) -> None:
        """Show the tasks a variant's arguments in the metadata, as lm-eval does.

        They are repeated in the results, in each task's config.
        """
        for name, metadata in self._metadata.items():
            self._all[name].config.metadata = metadata | dict(model_args) | self._of_run

    def _digest(self, name: str, task: Any, config: Any) -> dict[str, Any]:
        documents = task.eval_docs
        samples = (config.samples or {}).get(name)
        wanted = content.evaluated(documents, config.limit, samples, name)
        self.counts[name] = len(wanted)
        return {
            "documents": len(documents),
            "definition": _definition(task.dump_config()),
            "content": content.digest_of(wanted),
            "exemplars": content.digest_of(content.exemplars(task, config.num_fewshot)),
            "code": content.code(task),
        }

    def kinds(self) -> set[str]:
        """The methods of lm-eval's model that answer the tasks' requests, or names for some."""
        return {str(task.OUTPUT_TYPE) for task in self._all.values()}

    def groups(self) -> dict[str, str]:
        """By group, the identity of its definition: which tasks it has, and their average."""
        found = self.loaded.get("groups") or {}
        return {
            name: _definition({"tasks": group.child_names, "metrics": group.aggregate_metric_list})
            for name, group in found.items()
        }


def _definition(config: Mapping[str, Any]) -> str:
    """Identity of prompts, filters, metrics and the source of their functions."""
    # The metadata tell where things lie, too; what a run says of them is told apart.
    kept = {key: value for key, value in config.items() if key != "metadata"}
    text = json.dumps(kept, sort_keys=True, default=str)
    # A function that has no source to show is printed with its place in memory.
    return text_digest(re.sub(r" at 0x[0-9a-f]+", "", text))


def _build_once(name: str, task: Any) -> None:
    """Let a task keep the requests that it has built, emptied of the last variant's answers."""
    build = task.build_all_requests
    built: list[Any] = []

    def build_or_empty(**how: Any) -> None:
        if not built:
            with named_prompts_bar(name, how.get("rank", 0)):
                build(**how)
            built.extend(task.instances)
        for instance in built:
            instance.resps, instance.filtered_resps = [], {}

    task.build_all_requests = build_or_empty
