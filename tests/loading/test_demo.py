"""The embedded trio: it loads anywhere, equals `hf` alone, and shows what it is there to show."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path

import lm_eval
import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from trimix_lm_eval import TriMix
from trimix_lm_eval.utils import paths

SINGLES = ("large_ins", "small_cpt", "small_base")


@functools.cache
def manager() -> TaskManager:
    return TaskManager()


def evaluate(model, limit, batch_size=8, **model_args):
    return lm_eval.simple_evaluate(
        model=model,
        model_args=model_args or None,
        tasks=["trimix_demo"],
        task_manager=manager(),
        limit=limit,
        batch_size=batch_size if isinstance(model, str) else None,
        bootstrap_iters=0,
        log_samples=True,
    )


def answers(results) -> dict[str, list]:
    """Every response of every task, in the order of the documents."""
    return {
        task: [sample["resps"] for sample in sorted(samples, key=lambda s: s["doc_id"])]
        for task, samples in results["samples"].items()
    }


@pytest.mark.parametrize("role", SINGLES)
def test_a_corner_equals_hf_on_that_model(role):
    folder = str(paths.demo_dir() / role)
    hf = HFLM(pretrained=folder, dtype="float32", device="cpu", batch_size=4, logits_cache=False)
    expected = answers(evaluate(hf, 5))
    for batch_size in (1, 3, 8):
        got = answers(evaluate("trimix", 5, batch_size, pretrained="demo", policy=role))
        rolling = zip(got["trimix_demo_rolling"], expected["trimix_demo_rolling"], strict=True)
        for doc, wanted in rolling:
            assert doc[0][0] == pytest.approx(wanted[0][0], rel=1e-6, abs=1e-5)
        choice = zip(got["trimix_demo_finish"], expected["trimix_demo_finish"], strict=True)
        for doc, wanted in choice:
            for (value, greedy), (value_hf, greedy_hf) in zip(
                (r[0] for r in doc), (r[0] for r in wanted), strict=True
            ):
                assert value == pytest.approx(value_hf, rel=1e-6, abs=1e-5)
                assert greedy == greedy_hf
        for task in ("trimix_demo_follow", "trimix_demo_say", "trimix_demo_gloss_to"):
            assert got[task] == expected[task]


FIRST = 32  # passages that are scored again


@pytest.fixture(scope="module")
def nats():
    """Nats of the first held-out passages, by policy: what each of them has."""
    file = paths.tasks_dir() / "demo" / "data" / "rolling.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines()[:FIRST]
    texts = [json.loads(line)["text"] for line in lines]
    found = {}
    for policy in (*SINGLES, "proxy_tuning", "ppl"):
        model = TriMix.from_pretrained("demo", policy=policy, batch_size=8)
        found[policy] = [-s.log_likelihood for s in model.loglikelihood_rolling(texts)]
    return found


def test_text_has_the_order_that_the_method_promises(nats):
    total = {policy: sum(row) for policy, row in nats.items()}
    assert total["large_ins"] < total["small_base"]
    assert total["small_cpt"] < total["large_ins"]
    assert total["ppl"] < total["small_cpt"]
    assert total["ppl"] < total["proxy_tuning"]


def test_text_is_scored_as_it_was_measured(nats):
    measured = json.loads((paths.demo_dir() / "measured.json").read_text(encoding="utf-8"))
    ((task, rows),) = measured["nats"].items()
    assert task == "trimix_demo_rolling" and set(rows) == set(nats)
    for policy, row in rows.items():
        assert nats[policy] == pytest.approx(row[:FIRST], rel=2e-3), policy


def test_small_cpt_has_forgotten_english():
    text = (
        "And God said, Let there be light: and there was light. And God saw the light, that it "
        "was good: and God divided the light from the darkness."
    )
    nll = {}
    for role in SINGLES:
        model = TriMix.from_pretrained("demo", policy=role)
        nll[role] = -model.loglikelihood_rolling([text])[0].log_likelihood
    assert max(nll["small_base"], nll["large_ins"]) < nll["small_cpt"]


def test_the_trio_is_small():
    files = [f for f in paths.demo_dir().rglob("*") if f.is_file()]
    weights = [f for f in files if f.suffix == ".safetensors"]
    assert len(weights) == 3 and sum(f.stat().st_size for f in weights) <= 12 * 10**6
    assert sum(f.stat().st_size for f in files) <= 12.6 * 10**6


#: SHA-256 of the legal code, without the notice above it and blanks around it.
LEGAL_CODE = {
    "LICENSE-nanhai.txt": "94d68dcd271b88cc97a783fe18ddb516ff4ce599550c1603af30e711f6c23998",
    "LICENSE-cc-by-sa-4.0.txt": "925e1b06fa82e379bad225eb67723f7f296266d61b9fe6ac83445cc9778b8e2c",
}


def test_the_licences_are_whole_and_what_they_ask_for_is_said():
    models, data = paths.demo_dir(), paths.tasks_dir() / "demo" / "data"
    files = [*models.glob("LICENSE-*"), *data.glob("LICENSE-*")]
    assert sorted(file.name for file in files) == [*sorted(LEGAL_CODE), "LICENSE-nanhai.txt"]
    for file in files:
        notice, line, code = file.read_text(encoding="utf-8").rpartition("-" * 80 + "\n")
        assert hashlib.sha256(code.strip().encode()).hexdigest() == LEGAL_CODE[file.name], file
        if "nanhai" in file.name:
            for said in ("Nanhai", "by Esukhia", "github.com/Esukhia/Corpora", "CC BY 4.0"):
                assert said in notice, (file, said)
            assert "licenses/by/4.0/" in notice and "Changes:" in notice and line
    card = (models / "README.md").read_text(encoding="utf-8").split("## Data and licences")[1]
    for said in (
        *("King James Bible (public domain", "https://github.com/Esukhia/Corpora), CC BY 4.0"),
        *(
            "https://github.com/dadelani/sib-200",
            "Adelani et al. 2024",
            "FLORES-200 (NLLB Team 2022)",
        ),
        *("licenses/by-sa/4.0/", "`LICENSE-nanhai.txt`", "`LICENSE-cc-by-sa-4.0.txt`"),
        "given under CC BY-SA 4.0",
    ):
        assert said in " ".join(card.split()), said
    readme = (Path(__file__).parent.parent.parent / "README.md").read_text(encoding="utf-8")
    last = " ".join(readme[readme.index("Code: Apache-2.0.") :].split())
    assert "Nanhai corpus (Esukhia), CC BY 4.0" in last and "SIB-200, CC BY-SA 4.0" in last
