"""``trimix cpt``: continual pretraining of a small base model on raw text of one language.

Imported by `cli` and `training.new_language`. Adapters and TensorBoard need the extra `cpt`.

config.py       the YAML: every key, its default (the recipe of the paper's models), its checks
values.py       values as users give them, among them where text is
texts.py        files and folders, the Hub: places -> lines of bytes, known by their content
lines.py        bytes -> lines, none of them longer than a mebibyte in memory
scripts.py      which scripts letters are of
cleaning.py     lines -> documents; what is dropped, why, and where it can be read
holdout.py      which documents are held out; training text that is too near to them
packing.py      documents -> token ids on disk, in rows and blocks of rows
plan.py         rows of both texts in an exact ratio, batches and steps
corpus.py       all of this together, done once and kept
base.py         the model to go on from
apart.py        whether documents in one row stay apart in it
adapters.py     which of its layers get LoRA adapters
measure.py      bits per byte of held-out text, as lm-eval measures it
seals.py        checksums of what a later run reads back
checkpoints.py  which checkpoint to go on from
trainer.py      transformers' Trainer: order of the rows, held-out bits per byte, progress
folder.py       whose the run's folder is; what a full disk is called
saving.py       the model's folder: weights, tokenizer, card
report.py       what was read and what came of it, for reading
run.py          the whole
"""

from trimix_lm_eval.training.cpt.run import train

__all__ = ["train"]
