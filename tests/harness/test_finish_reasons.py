"""Why texts end: in the weights log, in results, and over a resumed run."""

from __future__ import annotations

import json

import pytest
from lm_eval.api.model import CachingLM

from tests.support.running import instances, model_args
from trimix_lm_eval import TriMix
from trimix_lm_eval.harness.lm import TriMixLM

PROMPTS = ["The hen", "x", "There were rivers in the barn.\n", "In the other"]


@pytest.fixture(scope="module")
def folders(pico):
    return pico("llama")


def requests(until, most=6, task="gen", prompts=PROMPTS):
    how = {"until": until, "max_gen_toks": most}
    return instances("generate_until", [(p, dict(how)) for p in prompts], task)


def loaded(folders, **more):
    return TriMixLM(**model_args(folders, policy="fixed", batch_size=2, **more))


def test_log_and_results_tell_why_texts_end(folders, tmp_path):
    log = tmp_path / "weights.jsonl"
    lm = loaded(folders, weights_log=log)
    free = lm.generate_until(requests([]), disable_tqdm=True)
    letter = free[0].strip()[0]
    stopped = lm.generate_until(requests([letter], task="stopped"), disable_tqdm=True)
    lm.loglikelihood(instances("loglikelihood", [("x", " y")], "scored"), disable_tqdm=True)
    told = lm.get_model_info()["trimix"]["finish_reasons"]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert sum(told["gen"].values()) == sum(told["stopped"].values()) == len(PROMPTS)
    assert set(told) == {"gen", "stopped"}, "scoring ends no text"
    for task in told:
        reasons = [line["finish_reason"] for line in lines if line["task"] == task]
        assert told[task] == {reason: reasons.count(reason) for reason in sorted(set(reasons))}
    cut = sum(text != whole for text, whole in zip(stopped, free, strict=True))
    assert told["stopped"]["stop"] >= cut >= 1 and told["gen"].get("stop", 0) == 0
    assert "finish_reason" not in next(line for line in lines if line["task"] == "scored")


def test_repeats_count_and_padding_does_not(folders):
    """lm-eval repeats a process's last request, so that all have equally many."""
    lm = loaded(folders)
    (one,) = requests([], prompts=["x"])
    lm.generate_until([one, one, one], disable_tqdm=True)
    assert sum(lm.get_model_info()["trimix"]["finish_reasons"]["gen"].values()) == 1
    one.repeats = 2
    lm.generate_until([one, one, one], disable_tqdm=True)
    assert sum(lm.get_model_info()["trimix"]["finish_reasons"]["gen"].values()) == 2


@pytest.mark.parametrize("more", [{}, {"think_end_token": "a"}])
def test_a_resumed_run_counts_what_the_cache_answers(folders, tmp_path, more):
    def counted(lm):
        told = lm.get_model_info()["trimix"]
        return told["finish_reasons"], told["unfinished_thoughts"]

    def run(some):
        lm = loaded(folders, **more)
        CachingLM(lm, str(tmp_path / "cache.db")).generate_until(some)
        return counted(lm)

    whole = loaded(folders, **more)
    whole.generate_until(requests([]), disable_tqdm=True)
    run(requests([])[:2])
    assert run(requests([])) == counted(whole)
    assert bool(counted(whole)[1]) == bool(more)


def test_processes_add_up(folders):
    from trimix_lm_eval.harness.base_lm import Tally

    parts = []
    for place in range(2):
        lm = loaded(folders)
        lm.generate_until(requests([])[place::2], disable_tqdm=True)
        parts.append(lm.tally())
    lm.total = Tally.over(parts)
    assert sum(lm.get_model_info()["trimix"]["finish_reasons"]["gen"].values()) == len(PROMPTS)


def test_the_python_face_tells(folders):
    roles = ("large_ins", "small_cpt", "small_base")
    model = TriMix.from_pretrained(
        **{role: folders[role] for role in roles}, policy="fixed", device="cpu"
    )
    found = model.complete(PROMPTS, max_new_tokens=5)
    assert [one.text for one in found] == model.generate(PROMPTS, max_new_tokens=5)
    assert {one.finish_reason for one in found} <= {"stop", "eos", "length"}
    assert found[0].finish_reason == "length" and found[0].choice.weights == (0.1, 0.9, None)
    letter = found[0].text.strip()[0]
    (one,) = model.complete(PROMPTS[:1], max_new_tokens=5, stop=[letter])
    assert one.finish_reason == "stop" and letter not in one.text
