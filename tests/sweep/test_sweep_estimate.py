"""What `trimix sweep --check` says of a sweep beforehand, beside what the sweep then does."""

from __future__ import annotations

import re

from tests.support.running import spied_rows
from tests.support.sweeping import config, make_lm_eval_quick, write_tasks
from trimix_lm_eval.sweep import look, sweep

BLOCK = {
    "grid": ["1:0", "0.3:1", "0:1"],
    "policies": ["ppl", "ppl_task", "gate"],
}


def test_tokens_and_forwards_are_those_of_the_sweep(pico, tmp_path, monkeypatch):
    make_lm_eval_quick(monkeypatch)
    tasks = ["choice", "choice_mutual", "rolling", "free"]
    asked = config(
        pico(),
        write_tasks(tmp_path / "tasks", tasks),
        tmp_path / "out",
        tasks=tasks,
        batch_size=4,
        gen_kwargs={"until": ["never"]},
        sweep=BLOCK,
    )
    asked["model_args"]["speculative"] = "off"
    told = "\n".join(look(asked))
    row = re.search(r"in all +([\d,]+) +([\d,]+) +([\d,]+) +([\d,]+) +([\d,]+)\n", told)
    assert row, told
    requests, tokens, forwards, new, steps = (int(n.replace(",", "")) for n in row.groups())
    assert new == 7 * 6 * 6 and requests == 7 * (3 + 6 + 1 + 1) + 3 * 7, told
    with spied_rows(monkeypatch) as shapes:
        sweep(asked)
    run_tokens = sum(rows * columns for rows, columns in shapes)
    assert run_tokens / 2 < tokens + new < run_tokens * 2
    assert len(shapes) / 2 < forwards + steps < len(shapes) * 2
    assert "estimate" not in "\n".join(look(asked)), "nothing is left to do"
