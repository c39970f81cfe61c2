"""The whole of ``trimix cpt``: prepare the text once, train from where training stopped, save.

    <output>/                      the model, when it is finished
    <output>/cpt/run.json          what the weights depend on, a record (see `seals`)
    <output>/cpt/data/             see `corpus`
    <output>/cpt/packing.json      whether documents stand in one row, a record; see `apart`
    <output>/cpt/checkpoints/      of the Trainer, until the model is finished
    <output>/cpt/measured.json     bits per byte of held-out text, before and after
    <output>/cpt/log.json          the Trainer's log
    <output>/cpt/finished.json     a record: those numbers, and checksums of the model's files

Every part is written beside its place and moved there when all of it is there, and none is made
twice: the same command goes on from any end, kill -9 included.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from trimix_lm_eval.training.cpt import (
    adapters,
    apart,
    checkpoints,
    corpus,
    folder,
    report,
    saving,
    seals,
    texts,
    trainer,
)
from trimix_lm_eval.training.cpt import base as bases
from trimix_lm_eval.training.cpt import config as configs
from trimix_lm_eval.training.cpt.base import Base
from trimix_lm_eval.training.cpt.config import Config
from trimix_lm_eval.training.cpt.corpus import Corpus
from trimix_lm_eval.training.cpt.measure import Windows, measure
from trimix_lm_eval.training.cpt.plan import TrainingPlan, plan
from trimix_lm_eval.utils import distributed, io
from trimix_lm_eval.utils.distributed import DistributedEnv
from trimix_lm_eval.utils.errors import TrimixError, first_line, is_out_of_memory

#: What the extra `cpt` installs.
_EXTRA = ("peft", "tensorboard")
_FINISHED = "finished.json"


def train(given: str | Path | Mapping[str, Any]) -> Path:
    """Train a model, or go on with it, and save it; returns its folder.

    Raises:
        TrimixError: Something is wrong that the user can fix. What is done stays done.
    """
    config = configs.read(given)
    _check_libraries(config)
    place = distributed.join()
    base = bases.find(config)
    length = min(config.sequence_length, base.context)
    with folder.disk_named(config), folder.alone(config, place):
        if place.rank == 0:
            _prepare(config, base, length, place)
        distributed.wait(place.world)
        if place.rank == 0:
            _say(report.of_corpus(corpus.account(config), config))
        if not (config.work / _FINISHED).exists():
            bases.check_memory(base, config)
            with _memory_named(config):
                _train(config, base, length, place)
        if place.rank == 0:
            _tidy(config)
            _say(_of_finished(config))
    return config.output


def _check_libraries(config: Config) -> None:
    """See that what a plain installation lacks is there, if the run needs it."""
    needed = [(f"report_to names {name}", name) for name in config.report_to]
    if config.lora_rank:
        needed.append((f"lora_rank: {config.lora_rank} trains adapters with peft", "peft"))
    for why, name in needed:
        if find_spec(name) is None:
            extra = "'trimix-lm-eval[cpt]'" if name in _EXTRA else name
            raise TrimixError(f"{why}, which is not here.", f"pip install {extra}")


def _prepare(config: Config, base: Base, length: int, place: DistributedEnv) -> None:
    """Make sure that the folder is this run's, and that the text is prepared."""
    found = texts.look(config)
    identity = {
        **config.identity(),
        "base files": base.identity(),
        "data": found.identity(),
        "row": length,
        "documents": "apart",  # since they do not see each other
        "batch": plan(config, length, 1, place.world).batch,
    }
    folder.claim(config, identity)
    corpus.prepare(config, found, base.tokenizer, length, place.world)


@contextlib.contextmanager
def _memory_named(config: Config) -> Iterator[None]:
    """Say what helps when memory runs out."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise TrimixError(
            f"Memory does not hold {config.micro_batch} rows of a batch: {first_line(error)}",
            f"write micro_batch: {max(1, config.micro_batch // 2)} (the batch stays as it is), or "
            "gradient_checkpointing: true; what is trained already is not lost",
        ) from error


def _packed(config: Config, model: Any, place: DistributedEnv) -> bool:
    """Whether documents may stand in one row: found out once in a run, whose rows depend on it."""
    packed = None
    if place.rank == 0:
        file = config.work / "packing.json"
        known = seals.read_record(file)
        if known is None:
            known = {"packed": apart.documents_stay_apart(model)}
            seals.write_record(file, known)
        packed = known["packed"]
    return bool(distributed.exchanged(packed, place.world)[0])


def _train(config: Config, base: Base, length: int, place: DistributedEnv) -> None:
    """Train from the newest checkpoint on, and save the best one."""
    model = bases.load(base, config)
    _to_device(model, place)  # where what is found out by trial holds
    packed = _packed(config, model, place)
    data = corpus.load(config, length, base.filler, packed)
    planned = plan(config, length, len(data.text), place.world, packed)
    if place.rank == 0:
        _say(report.of_english(corpus.account(config), planned))
        _say(report.of_plan(planned, config, packed))
    held = {"held_out": data.held_out, "test": data.test}
    windows = {
        name: Windows.of(some, base.tokenizer, planned.length)
        for name, some in held.items()
        if some
    }
    before = seals.read_record(config.work / "before.json")
    if before is None:
        before = _measure(model, windows, planned, place)
        if place.rank == 0:
            seals.write_record(config.work / "before.json", before)
    if place.rank == 0:
        _say(report.of_base(before))
    logging.disable_progress_bar()  # every checkpoint has one, which would tear ours
    training = trainer.make(
        config, planned, data, adapters.adapted(model, config), windows["held_out"], place
    )
    last = checkpoints.newest(config.work / "checkpoints") if place.rank == 0 else None
    last = distributed.exchanged(last, place.world)[0]
    if last and place.rank == 0:
        _say([f"going on after step {checkpoints.steps_of(last):,}"])
    best = config.work / "best"
    with distributed.watched(place.world):
        training.train(resume_from_checkpoint=str(last) if last else None)
        if training.is_fsdp_enabled:
            training.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
        training.save_model(str(best))
        distributed.wait(place.world)  # who ended now would seem lost to those that still save
    step, log = training.state.best_global_step or 0, training.state.log_history
    best_checkpoint = training.state.best_model_checkpoint
    del model, training
    if place.rank == 0:
        if best_checkpoint:
            checkpoints.check_best(Path(best_checkpoint))
        io.write_json(config.work / "log.json", log)
        _finish(config, base, planned, data, windows, before, step)


def _measure(
    model: Any, windows: Mapping[str, Windows], planned: TrainingPlan, place: DistributedEnv
) -> dict[str, float]:
    """Bits per byte of each text."""
    return {
        name: measure(model, some, planned.micro, place).bits_per_byte
        for name, some in windows.items()
    }


def _to_device(model: Any, place: DistributedEnv) -> None:
    """Move a model to the best device there is."""
    if torch.accelerator.is_available():
        model.to(place.device or torch.accelerator.current_accelerator())
    elif model.dtype != torch.float32:
        model.float()  # the weights are rounded already; CPUs are slow at half precision


def _finish(
    config: Config,
    base: Base,
    planned: TrainingPlan,
    data: Corpus,
    windows: Mapping[str, Windows],
    before: Mapping[str, float],
    step: int,
) -> None:
    """Save the model, measured as saved, with its card."""
    best, new = config.work / "best", config.work / "model.new"
    model = saving.trained(base, config, best)
    saving.save(model, base, new)
    _to_device(model, DistributedEnv())
    after = _measure(model, windows, planned, DistributedEnv())
    measured = {name: {"before": before[name], "after": number} for name, number in after.items()}
    text = saving.card(config, base, planned, corpus.account(config), measured, step)
    io.write(new / saving.CARD, text)
    io.write_json(config.work / "measured.json", measured)
    files = {name: one for name, one in seals.contents(new).items() if name != saving.CARD}
    saving.move(new, config.output)
    seals.write_record(
        config.work / _FINISHED, {"step": step, "measured": measured, "files": files}
    )


def _of_finished(config: Config) -> Iterator[str]:
    """What there is to say of a finished model."""
    file = config.work / _FINISHED
    finished = seals.read_record(file)
    again = f"delete {file} to train the model again"
    if finished is None:
        raise TrimixError(
            f"{file} is damaged, which tells of the finished model in {config.output}.", again
        )
    yield from report.of_result(finished["measured"])
    yield f"the model is in {config.output}: small_cpt={config.output}"
    for name in seals.changed(config.output, finished["files"]):
        yield f"warning: {config.output / name} is not as it was when it was finished; {again}"


def _tidy(config: Config) -> None:
    """Delete what a finished model has no use for: several times its size."""
    for name in ("best", "checkpoints"):
        shutil.rmtree(config.work / name, ignore_errors=True)


def _say(lines: Any) -> None:
    for line in lines:
        print(line, flush=True)
