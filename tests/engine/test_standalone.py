"""The engine runs without lm-eval: the program of docs/engine.md, in a process of its own."""

import json
import re
from pathlib import Path

import pytest

from tests.support.naive import Naive
from tests.support.running import ROOT, program
from trimix_lm_eval.fusion.weights import PAPER_GRID

#: Refuses lm-eval to whoever asks for it.
BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "lm_eval":
            raise ImportError("lm-eval is not installed")

assert "lm_eval" not in sys.modules
sys.meta_path.insert(0, Blocker())
"""
TOLD = """
import json
((_, _, score),), ((_, _, made),) = scores, texts
print(json.dumps([score.log_likelihood, score.choice.weights[:2], made.token_ids]))
"""


def shown() -> str:
    """The page's program."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/engine.md").read_text(), re.DOTALL)
    return code


def test_the_program_is_short():
    lines = [line for line in shown().splitlines() if line.strip()]
    assert len(lines) <= 20


def test_the_engine_runs_without_lm_eval(pico, tmp_path):
    folders = pico("llama", padded=False)
    (tmp_path / "models").mkdir()
    for role, folder in folders.items():
        (tmp_path / "models" / role).symlink_to(folder)
    script = tmp_path / "standalone.py"
    script.write_text(f"{BLOCKED}\nimport os\nos.chdir({str(tmp_path)!r})\n{shown()}\n{TOLD}")
    done = program(str(script), fresh=True, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    log_likelihood, weights, ids = json.loads(done.stdout.splitlines()[-1])

    size = json.loads((Path(folders["large_ins"]) / "config.json").read_text())["vocab_size"]
    naive = Naive(folders, size)
    prompt, continuation = [256, 72, 101, 108, 108], [111, 33]
    whole = [*prompt, *continuation]
    means = naive.grid(prompt, 1, [point[:2] for point in PAPER_GRID]).mean(dim=1)
    assert tuple(weights) == PAPER_GRID[int(means.argmin())][:2]
    nll = naive.nll(naive.fused(whole[:-1], *weights), whole, len(prompt))
    assert log_likelihood == pytest.approx(-float(nll.sum()), abs=1e-4)
    assert ids == naive.greedy(prompt, 8, *weights)


def test_no_module_of_the_engine_names_lm_eval():
    for path in (Path(ROOT) / "trimix_lm_eval" / "engine").glob("*.py"):
        assert not re.search(r"^\s*(import|from) lm_eval", path.read_text(), re.MULTILINE), path
