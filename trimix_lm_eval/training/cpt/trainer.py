"""transformers' Trainer, with three things of our own.

Rows come in the order of the `Mixture`, whatever the number of processes. Held-out text is measured
in bits per byte, and decides which checkpoint is the best. A checkpoint is sealed when all of it is
there, so that training goes on from it after any end, as if there had been none.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, SequentialSampler
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback

from trimix_lm_eval.training.cpt import seals
from trimix_lm_eval.training.cpt.config import Config
from trimix_lm_eval.training.cpt.corpus import Corpus
from trimix_lm_eval.training.cpt.measure import Windows, measure
from trimix_lm_eval.training.cpt.plan import Mixture, TrainingPlan
from trimix_lm_eval.utils import distributed
from trimix_lm_eval.utils.distributed import DistributedEnv
from trimix_lm_eval.utils.progress import progress_bar

#: As in Llama and Qwen; the recipe does not tell.
_BETA2, _CLIP = 0.95, 1.0


class Mixed(Dataset[dict[str, np.ndarray]]):
    """As many rows as a run takes, each at its place."""

    def __init__(self, corpus: Corpus, mixture: Mixture, count: int) -> None:
        self._corpus, self._mixture, self._count = corpus, mixture, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: int) -> dict[str, np.ndarray]:
        """A row, or a block of rows, under the names of a model's arguments."""
        row = self._mixture[place]
        return (self._corpus.english if row.english else self._corpus.text)[row.number]


def _together(rows: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """The rows of a forward pass; a block of rows comes alone."""
    return {name: torch.from_numpy(np.concatenate([row[name] for row in rows])) for name in rows[0]}


class CptTrainer(Trainer):
    """Trains on rows in their order, and measures bits per byte; the rest as in `Trainer`."""

    def __init__(self, windows: Windows, place: DistributedEnv, **given: Any) -> None:
        super().__init__(**given, data_collator=_together)
        self._windows, self._place = windows, place
        self.remove_callback(PrinterCallback)

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self._restored(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if not self._restored(self.state.best_model_checkpoint):
            super()._load_best_model()

    def _restored(self, folder: str | None) -> bool:
        """Read the weights of a checkpoint as whoever uses the model will; returns whether it did.

        Models may have other names for tensors in files than in memory: the experts of a layer are
        one tensor here and many there. The Trainer takes names for the same, and leaves out what
        has no counterpart. It is right about what is in pieces (FSDP, DeepSpeed) and adapters.
        """
        model: Any = self.model
        if folder is None or not isinstance(model, PreTrainedModel):
            return False
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return False
        saved = type(model).from_pretrained(folder, config=model.config, dtype=model.dtype)
        model.load_state_dict(saved.state_dict())
        return True

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Measure held-out text in place of a data set's loss."""
        rows = self.args.per_device_train_batch_size
        found = measure(self.model, self._windows, rows, self._place)
        metrics = {"eval_loss": found.nll, "eval_bits_per_byte": found.bits_per_byte}
        self.log(dict(metrics))
        told = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.control: TrainerControl = told
        return metrics


class Patience(EarlyStoppingCallback):
    """Stops when held-out text gets no better, also if it was stopped there before."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Stop at once if the checkpoint that training goes on from was the last one."""
        super().on_train_begin(args, state, control, **more)
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True


class Last(TrainerCallback):
    """Measures after the last step, too, as newer versions of transformers do by themselves."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask for it."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = True


class Seals(TrainerCallback):
    """Seals each checkpoint when all processes have written their part of it."""

    def __init__(self, place: DistributedEnv) -> None:
        self._place = place

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Seal what has just been written."""
        distributed.wait(self._place.world)
        if self._place.rank == 0:
            seals.seal(Path(args.output_dir, f"checkpoint-{state.global_step}"))
        distributed.wait(self._place.world)


class Bar(TrainerCallback):
    """A progress bar whose estimate leaves out what was trained before."""

    def __init__(self) -> None:
        self._bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the bar."""
        self._bar = progress_bar(
            None, "training", total=state.max_steps, initial=state.global_step, unit="step"
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move on by a step."""
        self._bar.update()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Show the training loss beside the bar, and what was measured above it."""
        logs = logs or {}
        if "loss" in logs:
            self._bar.set_postfix(loss=f"{logs['loss']:.3f}", refresh=False)
        if "eval_bits_per_byte" in logs:
            found = f"{logs['eval_bits_per_byte']:.4f} bits per byte of held-out text"
            self._bar.write(f"step {state.global_step:,}: {found}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the bar."""
        self._bar.close()


def make(
    config: Config,
    plan: TrainingPlan,
    corpus: Corpus,
    model: Any,
    windows: Windows,
    place: DistributedEnv,
) -> CptTrainer:
    """Put a trainer together."""
    mixture = Mixture(plan.rows, len(corpus.english), config.ratio, config.seed)
    callbacks: list[TrainerCallback] = [Last(), Seals(place)]
    if config.patience:
        callbacks.append(Patience(config.patience))
    if place.rank == 0:
        callbacks.append(Bar())
        if "tensorboard" in config.report_to:
            callbacks.append(_tensorboard(config.work / "tensorboard"))
    rows = Mixed(corpus, mixture, plan.steps * plan.batch)
    return CptTrainer(
        windows,
        place,
        model=model,
        args=_arguments(config, plan),
        train_dataset=rows,
        eval_dataset=rows,  # never looked at, but there has to be one
        callbacks=callbacks,
    )


def _tensorboard(folder: Path) -> TrainerCallback:
    """The Trainer's own callback; the environment is the other way to tell it the folder."""
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return TensorBoardCallback(SummaryWriter(str(folder)))


def _arguments(config: Config, plan: TrainingPlan) -> TrainingArguments:
    """What the Trainer is told."""
    gpu = torch.accelerator.is_available()
    checkpointing = gpu if config.gradient_checkpointing is None else config.gradient_checkpointing
    made = TrainingArguments(
        output_dir=str(config.work / "checkpoints"),
        run_name=config.output.name,
        max_steps=plan.steps,
        per_device_train_batch_size=plan.micro,
        gradient_accumulation_steps=plan.accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr": config.min_learning_rate},
        warmup_steps=plan.warmup,
        weight_decay=config.weight_decay,
        adam_beta2=_BETA2,
        max_grad_norm=_CLIP,
        bf16=_bf16(config),
        eval_strategy="steps",
        eval_steps=plan.every,
        save_strategy="steps",
        save_steps=plan.every,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="bits_per_byte",
        greater_is_better=False,
        restore_callback_states_from_checkpoint=True,
        logging_steps=min(10, plan.every),
        report_to=[name for name in config.report_to if name != "tensorboard"] or "none",
        seed=config.seed,
        use_cpu=not gpu,
        dataloader_pin_memory=gpu,
        remove_unused_columns=False,
        disable_tqdm=True,
        **_checkpointing(checkpointing),
    )
    # Several GPUs in one process would be fed more rows than planned; launchers give each its own.
    made._n_gpu = min(1, made.n_gpu)
    return made


def _bf16(config: Config) -> bool:
    """Whether the arithmetic is bf16 around fp32 weights."""
    if config.precision != "auto":
        return config.precision == "bf16"
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def _checkpointing(wanted: bool) -> dict[str, Any]:
    """Gradient checkpointing, by the name that this version of transformers has for it."""
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    name = next(n for n in ("activation_checkpointing", "gradient_checkpointing") if n in names)
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}} if wanted else {}
