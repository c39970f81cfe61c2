"""What is said of how a model is run."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.families import FAMILIES, known
from trimix_lm_eval.engine.probe import described, load_runner


def loaded(config):
    torch.manual_seed(4)
    return load_runner("large_ins", AutoModelForCausalLM.from_config(config).eval(), 272)


@pytest.mark.parametrize(
    ("name", "memory", "drafts"),
    [
        ("llama", "keys", True),
        ("lfm2", "keys and states", True),
        ("mamba2", "states", True),
        ("mamba", "states", False),
        ("rwkv", "none", False),
    ],
)
def test_how_a_model_is_run(name, memory, drafts):
    if not known(name):
        pytest.skip("not in this version of transformers")
    runner = loaded(FAMILIES[name].config(2))
    if runner.plain and memory != "none":
        pytest.skip("run without a cache in this version of transformers")
    found = described(runner)
    assert json.loads(json.dumps(found)) == found
    assert found["class"] == type(runner.model).__name__
    assert (found["memory"], found["drafts"]) == (memory, drafts)
    assert found["prompts_shared"] == (memory != "none")
    assert bool(found["why_not"]) == (not drafts)  # what could not be done, and so is not
    if memory == "none":
        assert found["difference"] is None
    else:
        assert 0 < found["difference"] <= found["tolerance"] == 1e-3


def test_the_difference_is_named_that_makes_a_model_plain():
    config = FAMILIES["llama"].config(2)
    torch.manual_seed(4)
    model = AutoModelForCausalLM.from_config(config).eval()
    rotary = model.model.rotary_emb
    forward = rotary.forward
    # Positions as if every text began at its first slot.
    rotary.forward = lambda x, position_ids: forward(
        x, torch.arange(position_ids.shape[1]).expand_as(position_ids)
    )
    found = described(load_runner("large_ins", model, 272))
    assert found["memory"] == "none" and not found["prompts_shared"]
    assert found["why_not"].startswith("logits differ by ")
