"""``trimix sweep``: many points and policies over tasks and languages, the sources run once.

Imported by `cli` only; imports `harness`, `analysis` and what is below them, never `training`.

block.py        the ``sweep:`` block of a run config
plan.py         what is to be run: settings, and in each the same variants
tasks.py        lm-eval's tasks, loaded once
content.py      what their results depend on: documents, exemplars, code
fingerprint.py  what a variant's numbers depend on
journal.py      every answer on disk as soon as it is known
answers.py      requests and answers as the journal has them
lm.py           SweepLM: all variants as one model of lm-eval
files.py        a variant's folder of results, there as a whole or not at all
quiet.py        what lm-eval says meanwhile, once and with a name
run.py          the whole
table.py        what came of it, for reading
"""

from trimix_lm_eval.sweep.run import look, sweep
from trimix_lm_eval.sweep.table import lines

__all__ = ["lines", "look", "sweep"]
