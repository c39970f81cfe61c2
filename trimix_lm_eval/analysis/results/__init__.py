"""Results files read back: those of sweeps, of plain `lm_eval` runs, and of other models.

Everything after a run (report, export, leaderboard) starts here and reads JSON only, no models. A
file that cannot be read is a `Problem` and never the end of what reads the others. Imported by the
rest of `analysis` and by `sweep`; imports `tasklib`, `fusion` and `utils`.

    reading.py   files -> runs and problems
    files.py     files found below folders, as text and as JSON
    scores.py    the scores of a task or group, and what is none
    run.py       one results file: its keys, what to call it, and how it departs from the published
                 protocol; what the rest of `analysis` works with
"""

from trimix_lm_eval.analysis.results.files import Problem, find, text_of
from trimix_lm_eval.analysis.results.reading import read, read_some
from trimix_lm_eval.analysis.results.run import SINGLE, Run
from trimix_lm_eval.analysis.results.scores import MetricValue

__all__ = ["SINGLE", "MetricValue", "Problem", "Run", "find", "read", "read_some", "text_of"]
