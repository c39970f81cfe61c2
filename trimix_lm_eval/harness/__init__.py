"""lm-eval's side: its requests in, its answers out, and what its results record.

Imported by `sweep` and `cli`, never by `analysis`; imports `sequence_fusion`, `llm`, `tasklib`,
`engine`, `loading`, `fusion` and `utils`. Nothing below knows lm-eval's requests.

    lm.py              TriMixLM: requests to token ids and on to the engine; generation_kwargs
    base_lm.py         what lm-eval asks of a model besides answers: text, processes, results
    task_weights.py    one point per task: the draw of prompts, the choice, what is kept of it
    response_cache.py  what --use_cache keeps, by all that an answer depends on
    request_cache.py   documents for each process; what --cache_requests keeps, against this run's
    weights_log.py     the sidecar: which weights each request got, and why its text ended
    check.py           a run config of lm-eval, checked before it is run
    requests.py        the requests that lm-eval would make of a run, built without a model
    estimate.py        requests, tokens and forward passes of a run, said beforehand
    estimate_table.py  the same for reading, with prompts that do not fit, and memory
    timing.py          how long it will take, by some of its requests on the loaded models
"""

from trimix_lm_eval.utils.errors import install_excepthook

# Before the modules that take seconds to import: Ctrl-C among them is no traceback either.
install_excepthook()
