"""How near `trimix check --load` comes to the time that a run takes, and to the tokens it runs.

    python benchmarks/estimate.py [--json] [--trio demo] [--policy ppl]

On the demo its own tasks are run, on other trios multiple choice after a shared prompt and texts.
Both the estimate and the run load the models and build the requests.

* ``seconds_estimated``, ``seconds_real``; ``ratio`` is the first by the second: from 0.5 to 2 is
  what is aimed at. Nothing else may run meanwhile.
* ``tokens``, ``forwards``: of one source, estimated and real, in a run that writes `WRITTEN` tokens
  of each text without drafts; ``ratio_tokens``, ``ratio_forwards`` are the first by the second.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timing
from models import STOP, Texts, Trio, add_arguments, open_trio

from trimix_lm_eval.engine.input_batch import InputBatch
from trimix_lm_eval.harness.check import check_run

#: Tokens of each text where forward passes are counted.
WRITTEN = 8


def main(argv: list[str] | None = None) -> None:
    parser = timing.parser(__doc__)
    add_arguments(parser, default="demo")
    parser.add_argument("--policy", default="ppl")
    parser.add_argument("--batch", type=timing.count, default=8)
    parser.add_argument("--limit", type=timing.count, default=400, help="documents of a task")
    parser.add_argument("--shots-tokens", type=timing.count, default=256)
    parser.add_argument("--question-tokens", type=timing.count, default=64)
    parser.add_argument("--new-tokens", type=timing.count, default=64, help="at the most")
    asked = parser.parse_args(argv)
    with (
        open_trio(asked.trio, asked.device, asked.models) as trio,
        tempfile.TemporaryDirectory() as at,
    ):
        values = measure(config_for(trio, asked, Path(at)), Path(at))
    timing.report(values, asked)


def config_for(trio: Trio, asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A run config over a trio."""
    tasks = ["trimix_demo"] if asked.trio == "demo" else write_tasks(Texts(trio), asked, folder)
    names = ("large_ins", "small_cpt", "small_base", "tokenizer", "dtype")
    models = {name: getattr(trio, name) for name in names}
    return {
        "model": "trimix",
        "model_args": {"pretrained": models.pop("large_ins"), **models, "policy": asked.policy},
        "tasks": tasks,
        "batch_size": asked.batch,
        "device": asked.device,
        "limit": asked.limit,
    }


def write_tasks(texts: Texts, asked: argparse.Namespace, folder: Path) -> list[str]:
    """Tasks in the words of a trio: questions with four options, and texts."""
    rows = [
        {"question": texts.text(asked.question_tokens), "options": texts.options(4, 8), "answer": 0}
        for _ in range(asked.limit)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "description": texts.text(asked.shots_tokens) + " ",
        "doc_to_text": "{{question}}",
        "num_fewshot": 0,
    }
    choice = {
        "output_type": "multiple_choice",
        "doc_to_choice": "options",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    writing = {
        "output_type": "generate_until",
        "doc_to_target": "{{options[0]}}",
        "generation_kwargs": {"until": [STOP], "max_gen_toks": asked.new_tokens},
        "metric_list": [{"metric": "exact_match"}],
    }
    files = []
    for name, own in (("choice", choice), ("writing", writing)):
        files.append(str(folder / f"{name}.yaml"))
        Path(files[-1]).write_text(json.dumps({"task": name, **common, **own}), encoding="utf-8")
    return files


def measure(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    estimated = seconds_in(check(config, folder, load=True))
    begun = time.perf_counter()
    evaluate(config)
    real = time.perf_counter() - begun
    short = {**config, "gen_kwargs": {"max_gen_toks": WRITTEN}}
    short["model_args"] = {**config["model_args"], "speculative": "off"}
    tokens, forwards = work_in(check(short, folder))
    with counting() as count:
        evaluate(short)
    return {
        "seconds_estimated": estimated,
        "seconds_real": round(real, 1),
        "ratio": round(estimated / real, 2),
        "tokens": [tokens, sum(count)],
        "forwards": [forwards, len(count)],
        "ratio_tokens": round(tokens / sum(count), 3),
        "ratio_forwards": round(forwards / len(count), 3),
    }


def check(config: dict[str, Any], folder: Path, load: bool = False) -> str:
    """What `trimix check` prints of a config."""
    path = folder / "run.yaml"
    path.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    return "\n".join(check_run(str(path), load=load))


def evaluate(config: dict[str, Any]) -> None:
    """Run a config as `lm_eval run` does."""
    from lm_eval import simple_evaluate

    simple_evaluate(**config)


def seconds_in(printed: str) -> float:
    found = re.search(r"time: about (\d+):(\d+):([\d.]+)", printed)
    assert found
    hours, minutes, seconds = found.groups()
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def work_in(printed: str) -> tuple[int, int]:
    """Tokens and forward passes, those of new tokens included."""
    found = re.search(r"in all" + r" +([\d,]+)" * 5, printed)
    assert found
    _, tokens, forwards, new_tokens, steps = (int(n.replace(",", "")) for n in found.groups())
    return tokens + new_tokens, forwards + steps


@contextmanager
def counting() -> Iterator[list[int]]:
    """Count the tokens that go through the first source, padding included, by pass."""
    seen: list[int] = []
    run = InputBatch.run

    def see(batch: InputBatch, which: int, start: int, wanted: Any = None) -> Any:
        if which == 0:
            rows, slots = batch.table.ids.shape
            seen.append(rows * (slots - start))
        return run(batch, which, start, wanted)

    InputBatch.run = see  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        InputBatch.run = run  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
