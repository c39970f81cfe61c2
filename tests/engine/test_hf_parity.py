"""Invariant 1: at (1, 0), (0, 1), (0, 0) the numbers are those of `hf`, through lm-eval."""

from __future__ import annotations

import pytest
import torch
from lm_eval.models.huggingface import HFLM

from tests.conftest import FAMILIES
from tests.support.naive import Naive
from tests.support.running import TRIO, answers, evaluate, instances, model_args, spied_rows
from trimix_lm_eval.harness.lm import TriMixLM

LONG = "It rained on the hen, then in the barn, and over the other rivers there. " * 3
TIBETAN = "བོད་སྐད་ནི་སྐད་ཡིག་ཅིག་ཡིན།"
CONTEXTS = [
    "The cat sat on the mat",
    "Question: where is the river?\nAnswer:",
    "x",
    "Trailing spaces stay  ",
    TIBETAN,
    LONG,
    "",
    "\nthen a line",
]
OPTIONS = [
    [" and slept", " x", " in the other barn"],
    [" there", " over the hills and far away", " " + TIBETAN],
    ["y", " the end of all", "  two spaces"],
    ["here", "a", "long after the rest of them"],
    ["ཡིན", " yes", " no no no"],
    [" alone", " in there", " q" + "w" * 30],
    ["Begins", "The", "x"],
    [" one", "!", "?!?!?!?"],
]
DOCS = [
    {"context": context, "choices": options, "target": options[0], "gold": 0}
    for context, options in zip(CONTEXTS, OPTIONS, strict=True)
]
TEXTS = [{"text": text} for text in (*CONTEXTS, LONG * 2, TIBETAN * 4) if text]
STOPS = ["\n", "e", "་", "ing"]
BATCHES = (1, 3, 8)
TASKS = ["pair", "choice", "rolling", "free"]


@pytest.fixture
def tasks(task_yaml):
    """One task of every output type."""
    task_yaml(
        "pair",
        DOCS,
        output_type="loglikelihood",
        doc_to_text="{{context}}",
        doc_to_target="{{target}}",
        target_delimiter="",
        metric_list=[{"metric": "perplexity"}, {"metric": "acc"}],
    )
    task_yaml(
        "choice",
        DOCS,
        output_type="multiple_choice",
        doc_to_text="{{context}}",
        doc_to_choice="choices",
        doc_to_target="gold",
        target_delimiter="",
        metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}],
    )
    task_yaml(
        "rolling",
        TEXTS,
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[{"metric": "bits_per_byte"}],
    )
    return task_yaml(
        "free",
        [doc for doc in DOCS if doc["context"]],  # hf continues an empty prompt after padding only
        output_type="generate_until",
        doc_to_text="{{context}}",
        doc_to_target="{{target}}",
        generation_kwargs={"until": STOPS, "max_gen_toks": 24, "do_sample": False},
        metric_list=[{"metric": "bypass"}],
    )


def oracle(folder: str, batch_size: int) -> HFLM:
    return HFLM(
        pretrained=folder,
        dtype="float32",
        softmax_dtype="float32",
        logits_cache=False,
        device="cpu",
        batch_size=batch_size,
    )


def assert_same_answers(got, want):
    """Log-likelihoods to 1e-5, rolling to 1e-6 of itself, texts and greedy flags exactly."""
    for task in TASKS:
        mine, theirs = answers(got, task), answers(want, task)
        assert len(mine) == len(theirs) > 0
        for doc, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            for x, y in zip(a, b, strict=True):
                where = (task, doc)
                if task == "free":
                    assert x == y, where
                elif task == "rolling":
                    assert x == pytest.approx(y, rel=1e-6), where
                else:
                    assert x[0] == pytest.approx(y[0], rel=1e-6, abs=1e-5), where
                    assert x[1] == y[1], where


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("role", TRIO)
def test_corners_equal_hf_through_simple_evaluate(pico, tasks, family, role):
    folders = pico(family, padded=False)
    want = evaluate(oracle(folders[role], 4), tasks, TASKS)
    texts = [answer for doc in answers(want, "free") for answer in doc]
    assert len(set(texts)) > 3, "the oracle's texts are all alike: they would prove nothing"
    for batch_size in BATCHES:
        arguments = model_args(folders, policy=role, batch_size=batch_size)
        got = evaluate("trimix", tasks, TASKS, model_args=arguments)
        assert_same_answers(got, want)
        for task in TASKS:
            metrics = {k: v for k, v in got["results"][task].items() if isinstance(v, float)}
            expected = want["results"][task]
            assert metrics == {k: pytest.approx(expected[k], rel=1e-5) for k in metrics}, task


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_equals_hf(pico, family):
    folders = pico(family, padded=False)
    pairs = [(c, o) for c, options in zip(CONTEXTS, OPTIONS, strict=True) for o in options]
    how = {"until": STOPS, "max_gen_toks": 20, "do_sample": False}
    for role, batch_size in zip(TRIO, BATCHES, strict=True):
        # Llama 4 as transformers pads it takes padding for positions: hf writes other texts then.
        hf = oracle(folders[role], 1 if family == "llama4" else 4)
        lm = TriMixLM(**model_args(folders, policy=role, batch_size=batch_size))
        assert lm.max_length == hf.max_length == 96
        got = lm.loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)
        want = hf.loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)
        for x, y in zip(got, want, strict=True):
            assert x[0] == pytest.approx(y[0], rel=1e-6, abs=1e-5) and x[1] == y[1]
        asked = [(doc["text"],) for doc in TEXTS]
        got = lm.loglikelihood_rolling(instances("loglikelihood_rolling", asked), True)
        want = hf.loglikelihood_rolling(instances("loglikelihood_rolling", asked), True)
        assert got == pytest.approx(want, rel=1e-6)
        asked = [(context, dict(how)) for context in CONTEXTS if context]
        got = lm.generate_until(instances("generate_until", asked), True)
        want = hf.generate_until(instances("generate_until", asked), True)
        assert got == want


def test_tokenizer_that_adds_bos(pico, tmp_path):
    """As Llama's does: once per text, never twice, and not before a continuation."""
    folder = tmp_path / "bos"
    add_bos(pico("llama", padded=False)["small_cpt"], folder)
    hf = oracle(str(folder), 4)
    lm = TriMixLM(pretrained=str(folder), policy="large_ins", device="cpu", batch_size=3)
    assert lm.tok_encode("a") == hf.tok_encode("a") == [256, *hf.tok_encode("a")[1:]]
    assert lm.tok_encode("<s>a").count(256) == 1
    pairs = [(c, o) for c in ("Some text", "<s>Some text", "", "  ") for o in (" there", "?!")]
    pairs = [pair for pair in pairs if pair[0].strip() or not pair[0]]
    got = lm.loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)
    want = hf.loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)
    assert [x[0] for x in got] == pytest.approx([x[0] for x in want], rel=1e-6, abs=1e-5)
    # A BOS is not scored: neither the tokenizer's nor the text's, where hf scores both.
    texts = [("One text",), ("<s>One text",), ("Another text, " * 20,)]
    got = lm.loglikelihood_rolling(instances("loglikelihood_rolling", texts), True)
    texts[1] = texts[0]
    hf.add_bos_token = False
    want = hf.loglikelihood_rolling(instances("loglikelihood_rolling", texts), True)
    hf.add_bos_token = None
    assert got == pytest.approx(want, rel=1e-6)
    # hf judges a whole batch of prompts by its first: ask it one by one.
    how = {"until": ["\n"], "max_gen_toks": 8, "do_sample": False}
    asked = [(text, how) for text in ("<s>Some text", "Some text", "A longer text, this")]
    got = lm.generate_until(instances("generate_until", asked), True)
    want = [
        oracle(str(folder), 1).generate_until(instances("generate_until", [one]), True)[0]
        for one in asked
    ]
    assert got == want and got[0] == got[1]


def add_bos(source: str, target) -> None:
    """A copy of a model whose tokenizer puts BOS before every text."""
    import shutil

    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    shutil.copytree(source, target)
    tokenizer = AutoTokenizer.from_pretrained(target)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 256)]
    )
    tokenizer.save_pretrained(target)


def test_equal_tokens_split_differently_are_two_requests(pico):
    """HFLM with its logits cache groups these, and one gets the other's score."""
    folders = pico("llama", padded=False)
    reference = Naive({r: folders[r] for r in TRIO}, 265)
    whole = "qwx zvbk mnpl"
    pairs = [(whole[:cut], whole[cut:]) for cut in (5, 3, 12, 7, 1)]
    pairs = [(a, b) for a, b in pairs if not a.endswith(" ")]
    assert len(pairs) >= 4
    for batch_size in BATCHES:
        lm = TriMixLM(
            **model_args(folders, policy="fixed", alpha=0.3, beta=0.8, batch_size=batch_size)
        )
        got = lm.loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)
        ids = lm.tok_encode(whole)
        logits = reference.fused(ids, 0.3, 0.8)
        for (context, _), (found, _) in zip(pairs, got, strict=True):
            start = len(lm.tok_encode(context))
            want = -float(reference.nll(logits, ids, start).sum())
            assert found == pytest.approx(want, rel=1e-6, abs=1e-5)
        assert len({round(found, 3) for found, _ in got}) == len(pairs)


def test_rows_stop_at_different_strings_separately(pico, monkeypatch):
    """HFLM runs a batch on until all rows have hit the *same* stop string."""
    folders = pico("llama", padded=False)
    reference = Naive({"large_ins": folders["large_ins"]}, 265)
    reference.models["small_cpt"] = reference.models["small_base"] = reference.models["large_ins"]
    lm = TriMixLM(**model_args(folders, policy="large_ins", batch_size=8))
    contexts = ["The cat", "Some other text", TIBETAN[:8], "zzz", "Again the hen"]
    most = 40
    free = [reference.greedy(lm.tok_encode(c), most, 1.0, 0.0) for c in contexts]
    # One stop string per row: what its own text holds at a place of its own.
    stops, needs = [], []
    for row, ids in enumerate(free):
        pieces = (lm.tok_decode(ids[n : n + 2]) for n in range(4 * row + 1, most))
        stops.append(next(piece for piece in pieces if "\ufffd" not in piece))
    for ids in free:
        texts = (lm.tok_decode(ids[:n]) for n in range(1, len(ids) + 1))
        hit = next((n for n, t in enumerate(texts, 1) if any(s in t for s in stops)), len(ids))
        needs.append(hit)
    assert len(set(needs)) >= 3 and max(needs) < most, needs
    how = {"until": stops, "max_gen_toks": most, "do_sample": False}
    with spied_rows(monkeypatch) as shapes:
        got = lm.generate_until(
            instances("generate_until", [(c, dict(how)) for c in contexts]), disable_tqdm=True
        )
    for text, ids, need in zip(got, free, needs, strict=True):
        want = lm.tok_decode(ids[:need])
        for stop in stops:
            want = want.split(stop)[0]
        assert text == want
    steps = [rows for rows, columns in shapes if columns == 1]
    assert len(steps) == max(needs) - 1
    # A row that is done has left: the passes hold as many rows as still have a token to make.
    assert steps == [sum(need > done for need in needs) for done in range(1, max(needs))]


def test_one_row_is_not_changed_by_its_company(pico):
    """Same request alone and among others: the same bits up to 1e-5, the same text."""
    folders = pico("gemma3", padded=False)
    lm = TriMixLM(**model_args(folders, policy="large_ins", batch_size=8))
    pairs = [(c, o) for c, options in zip(CONTEXTS, OPTIONS, strict=True) for o in options]
    together = lm.loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)
    for pair, (found, _) in list(zip(pairs, together, strict=True))[::4]:
        ((alone, _),) = lm.loglikelihood(instances("loglikelihood", [pair]), disable_tqdm=True)
        assert alone == pytest.approx(found, abs=1e-5)
    assert torch.is_grad_enabled()
