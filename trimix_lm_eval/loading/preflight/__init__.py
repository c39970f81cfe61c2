"""Checks before any weight is loaded: access, configs, tokenizers, devices, memory.

A run over four large models should not fail after an hour of loading for something that a look at
their small files could tell. `check` looks, and either returns a `PreflightReport` or raises one
`TrimixError` that says what happened, where, and what to do. Imports `loading`'s settings and Hub
access; `llm`, `training`, `harness` and `sweep` ask it.

    access.py      which files a repository or folder has, and why it cannot be read
    files.py       whether the files of a local folder are whole
    configs.py     whether the config is that of a causal LM, and can be loaded here
    vocabulary.py  what a tokenizer knows, and where two of them differ
    relation.py    how each source's vocabulary is related to that in use, and what can be fused
    context.py     how many tokens the sources see at once
    memory.py      devices, and what the weights need on each
    kept.py        what a model keeps of the texts that it reads
    report.py      what `check` found, and the check of sources with one tokenizer
    each.py        `check`, whether the sources need one tokenizer or not
"""

from trimix_lm_eval.loading.preflight.each import check
from trimix_lm_eval.loading.preflight.report import PreflightReport, pinned

__all__ = ["PreflightReport", "check", "pinned"]
