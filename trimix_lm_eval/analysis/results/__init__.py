"""Results files read back: those of sweeps, of plain `lm_eval` runs, and of other models.

Everything after a run (report, export, leaderboard) starts here and reads JSON only, no models. A
file that cannot be read is a `Problem` and never the end of what reads the others. Imported by the
rest of `analysis` and by `sweep`; imports `tasklib`, `fusion` and `utils`.

    reading.py        files -> runs and problems
    results_file.py   one results file, as its keys are read
    run.py            the same with what to call it, and how it departs from the published
                      protocol: what the rest of `analysis` works with
"""

from trimix_lm_eval.analysis.results.reading import below, read
from trimix_lm_eval.analysis.results.results_file import MetricValue, Problem
from trimix_lm_eval.analysis.results.run import SINGLE, Run

__all__ = ["SINGLE", "MetricValue", "Problem", "Run", "below", "read"]
