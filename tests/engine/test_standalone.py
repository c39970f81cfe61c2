"""The engine runs without lm-eval: the program of docs/engine.md, in a process of its own."""

import json
import re
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.support.naive import Naive
from tests.support.running import ROOT, TRIO, program
from trimix_lm_eval.fusion.weights import PAPER_GRID
from trimix_lm_eval.utils.paths import demo_dir

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
print(json.dumps([score.log_likelihood, score.choice.weights[:2], text.token_ids]))
"""


def shown() -> str:
    """The page's program."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/engine.md").read_text(), re.DOTALL)
    return code


def result() -> list[str]:
    """What the page says that it prints."""
    (text,) = re.findall(r"```text\n(.*?)```", (ROOT / "docs/engine.md").read_text(), re.DOTALL)
    return text.splitlines()


def test_the_program_is_short():
    lines = [line for line in shown().splitlines() if line.strip()]
    assert len(lines) <= 20


def test_the_engine_runs_without_lm_eval(tmp_path):
    script = tmp_path / "standalone.py"
    script.write_text(f"{BLOCKED}\n{shown()}\n{TOLD}")
    done = program(str(script), fresh=True, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    *printed, told = done.stdout.splitlines()
    assert printed == result()
    log_likelihood, weights, ids = json.loads(told)

    folders = {role: str(demo_dir() / role) for role in TRIO}
    tokenizer = AutoTokenizer.from_pretrained(folders["large_ins"])
    naive = Naive(folders, len(tokenizer))
    prompt, continuation = tokenizer.encode("In the beginning"), tokenizer.encode(" God created")
    whole = [*prompt, *continuation]
    means = naive.grid(prompt, 1, [point[:2] for point in PAPER_GRID]).mean(dim=1)
    assert tuple(weights) == PAPER_GRID[int(means.argmin())][:2]
    nll = naive.nll(naive.fused(whole[:-1], *weights), whole, len(prompt))
    assert log_likelihood == pytest.approx(-float(nll.sum()), abs=1e-4)
    assert ids == naive.greedy(prompt, 12, *weights, ends=(tokenizer.eos_token_id,))


def test_no_module_of_the_engine_names_lm_eval():
    for path in (Path(ROOT) / "trimix_lm_eval" / "engine").glob("*.py"):
        assert not re.search(r"^\s*(import|from) lm_eval", path.read_text(), re.MULTILINE), path
