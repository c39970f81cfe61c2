"""Models that think before they answer: stop strings sleep until the first end of the thinking."""

from __future__ import annotations

import dataclasses
import json
import logging
import random

import pytest
from tokenizers import AddedToken

from tests.conftest import byte_tokenizer
from tests.engine.test_scheduler import play
from tests.support.running import instances, model_args
from trimix_lm_eval import TriMix
from trimix_lm_eval.analysis.explain.run import explain
from trimix_lm_eval.engine.sampler import SamplingParams
from trimix_lm_eval.engine.thinking import ThinkingCriteria
from trimix_lm_eval.harness.lm import TriMixLM
from trimix_lm_eval.loading import settings
from trimix_lm_eval.utils import errors
from trimix_lm_eval.utils.errors import TrimixError

END, EOS = "</think>", 257


@pytest.fixture
def told(caplog, monkeypatch):
    """Our warnings; each is given once per process, so the memory of that is cleared."""
    monkeypatch.setattr(errors, "_warned", set())
    caplog.set_level(logging.WARNING, logger="trimix_lm_eval")
    return lambda: [r.getMessage() for r in caplog.records if r.name == "trimix_lm_eval"]


def loaded(trio, end=END, batch_size=2, **asked):
    """A model whose tokenizer the test may change."""
    plain = trio("llama").weighted("fixed", alpha=0.3, beta=0.6, batch_size=batch_size)
    options = dataclasses.replace(plain.settings, think_end_token=end, **asked)
    return TriMix(options, byte_tokenizer(), plain.fuser, plain.report)


def script(model, text):
    """Its tokens; ``|`` stands for the end of the text."""
    ids = []
    for i, part in enumerate(text.split("|")):
        ids += [EOS] * bool(i) + model.tokenizer.encode(part, add_special_tokens=False)
    return ids


def said(monkeypatch, model, text, stop=("\n",), prompt="x", most=None, **how):
    """What is made of a model that says exactly this."""
    ids = script(model, text)
    with monkeypatch.context() as patch:
        play(patch, model, [*ids, EOS])
        params = {"max_new_tokens": most or len(ids), "stop": stop, **how}
        (found,) = model.complete([prompt], **params)
    return found.text, found.finish_reason, found.unfinished_thought


@pytest.mark.parametrize(
    ("text", "stop", "answer", "reason"),
    [
        ("a\nb\n\nc</think>42\n7", ["\n"], "42", "stop"),
        ("a\n</think>\n\n 42\n7", ["\n"], "42", "stop"),  # white space in front is not the answer
        ("a\n</think>42|x", ["\n"], "42", "eos"),
        ("a\n</think>42", ["\n"], "42", "length"),
        ("a</think>say </think> and so on\n", ["\n"], "say </think> and so on", "stop"),
        ("a</think>b</think>c|", ["</think>"], "b", "stop"),
        ("a</think>42", ["k>4"], "42", "length"),  # one that spans the end counts for nothing
        ("a k>42 </think>1k>42", ["k>4"], "1", "stop"),
        ("a\n</think>\n\n|", ["\n\n"], "", "eos"),
        ("</think>" + "\n" * 30 + "4\n", ["\n"], "4", "stop"),
        ("སྐད\n</think>སྐད།ཡིག", ["།"], "སྐད", "stop"),
        ("a\n</think>4 2", [], "4 2", "length"),
    ],
)
def test_stops_sleep_until_the_thinking_ends(monkeypatch, trio, text, stop, answer, reason):
    for batch_size in (1, 3):
        model = loaded(trio, batch_size=batch_size)
        assert said(monkeypatch, model, text, stop) == (answer, reason, False)


@pytest.mark.parametrize(
    ("text", "reason"),
    [("a\nb\nc", "length"), ("a\nb|</think>c", "eos"), ("|", "eos"), ("a</thin", "length")],
)
def test_an_unfinished_thought_is_no_answer(monkeypatch, trio, told, text, reason):
    model = loaded(trio)
    for _ in range(2):
        assert said(monkeypatch, model, text) == ("", reason, True)
    assert sum("thinking" in line for line in told()) == 1
    assert said(monkeypatch, loaded(trio, end=None), "a\nb") == ("a", "stop", False)


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("by_id", [True, False])
def test_the_end_as_one_token(monkeypatch, trio, special, by_id):
    """A special token is no part of a decoded text; its id may be given in its place."""
    model = loaded(trio)
    model.tokenizer.add_tokens([AddedToken(END, special=special)], special_tokens=special)
    token = model.tokenizer.convert_tokens_to_ids(END)
    asked = dataclasses.replace(model.settings, think_end_token=token if by_id else END)
    other = TriMix(asked, model.tokenizer, model.fuser, model.report)
    assert script(other, END) == [token]
    got = said(monkeypatch, other, "a\nb</think>\n42</think>3\n")
    assert got == ("423" if special else "42</think>3", "stop", False)
    assert said(monkeypatch, other, "a\nb")[2]
    if by_id:  # an ordinary token: its letters in another one do not count
        words = dataclasses.replace(asked, think_end_token=script(other, "the")[0])
        there = TriMix(words, model.tokenizer, model.fuser, model.report)
        assert said(monkeypatch, there, "t\nh e\n thethe 4\n") == ("4", "stop", False)


@pytest.mark.parametrize("end", [">A", "</think>", "\n\n", "the end"])
def test_an_end_within_tokens(trio, end):
    """Ends and stops may begin and end anywhere in tokens; told by the whole text, as one would."""
    model, rng = loaded(trio, end=end), random.Random(5)
    for _ in range(150):
        some = [*"the in er\n  a.A>", end, end[:-1], "སྐད"]
        text = "".join(rng.choices(some, k=rng.randint(3, 40)))
        ids = script(model, text)
        criteria, at = ThinkingCriteria(model.tokenizer, end), None
        for n in range(1, len(ids) + 1):
            at = criteria.advance(ids[:n], at)
            shown = model.tokenizer.decode(ids[:n])
            assert (at is None) == (end not in shown)
        want = text.split(end, 1)[1].lstrip().split(".")[0] if end in text else ""
        assert model.codec.completion(ids, ["."], at) == want


CHAT = "<pad>user\nWhy?<pad>bot\n"
PROMPTS = [
    ("x", False),
    ("Q: 1\nA: <think>so\n</think> 1\n\nQ: 2\nA:", False),
    ("<think>\n\n</think>\n\n", True),
    ("Q: 2\nA:</think>", True),
    (CHAT, False),
    (CHAT + "<think>\n", False),
    (CHAT + "<think>\n\n</think>\n\n", True),
    (CHAT + "<think>\n\n</think>\n\nThe answer is", True),  # as gen_prefix puts it
    (CHAT + "<think>no</think>1" + CHAT, False),
    (CHAT + "<think>no</think>1" + CHAT + "<think>\n", False),
    (CHAT + "<think>no</think><think>\n", False),
    ("word " * 40 + "</think>\n", True),
]


@pytest.mark.parametrize(("prompt", "over"), PROMPTS)
def test_the_prompt_may_end_the_thinking(monkeypatch, trio, prompt, over):
    """As chat templates do where none is wanted; exemplars that think are others' thoughts."""
    model = loaded(trio)
    got = said(monkeypatch, model, "\n4\n2", prompt=prompt)
    assert got == (("4", "stop", False) if over else ("", "length", True))
    got = said(monkeypatch, model, "a\nb</think>\n7\n2", prompt=prompt)
    assert got[0] == ("a" if over else "7")
    tokenizer = model.tokenizer  # the same, where the end is a token of its own
    tokenizer.add_tokens([AddedToken(END)])
    for end in (END, tokenizer.convert_tokens_to_ids(END)):
        assert ThinkingCriteria(tokenizer, end).over(tokenizer.encode(prompt)) == over


def test_drafts_batches_and_draws_change_nothing(trio):
    """The end is found in what the models say by themselves, at a letter that they often say."""
    prompts = ["The hen", "x", "rivers"]
    for temperature in (0.0, 1.0):
        how = {"max_new_tokens": 12, "temperature": temperature, "seed": 3}
        free = loaded(trio, end=None, speculative="off").generate(prompts, **how)
        marks = "".join(loaded(trio).tokenizer.all_special_tokens)  # read with the thinking
        letters = sorted(set("".join(free)) - {"\ufffd", *marks})
        letters.sort(key="".join(free).count)
        # In some of the texts the thinking ends, in others it does not.
        end = [x for x in letters if not all(x in text for text in free)][-1]
        stop = [x for x in letters if x != end][-2:]
        want = loaded(trio, end, 1, speculative="off").complete(prompts, stop=stop, **how)
        for batch_size, drafts in ((1, 3), (3, "off"), (3, 4)):
            model = loaded(trio, end, batch_size, speculative=drafts)
            assert model.complete(prompts, stop=stop, **how) == want
        assert {one.unfinished_thought for one in want} == {True, False}
        for text, one in zip(free, want, strict=True):
            answer = text.split(end, 1)[1].lstrip() if end in text else ""
            if "\ufffd" not in text:
                assert one.text == min((answer.split(s)[0] for s in stop), key=len)


def test_explained(monkeypatch, trio):
    model = loaded(trio)
    for text, answer in (("a\n</think>\n42\n", "42"), ("a\nb", "")):
        ids = script(model, text)
        with monkeypatch.context() as patch:
            play(patch, model, ids)
            found = explain(model, "x", SamplingParams(len(ids), ("\n",)))
        assert found.text == answer and [token.id for token in found.tokens] == ids
        assert any("thinking" in note for note in found.notes) == (not answer)


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("given", "taken"), [(266, 266), ("266", 266), (0, 0), (END, END), ("1 2", "1 2"), (266.0, 266)]
)
def test_the_end_is_a_text_or_an_id(given, taken):
    asked = settings.parse({"pretrained": "a", "policy": "large_ins", "think_end_token": given})
    assert asked.think_end_token == taken and type(asked.think_end_token) is type(taken)


@pytest.mark.parametrize(
    "given", ["", True, -1, "-1", 1.5, ["</think>"], {}, float("nan"), "a\udcff"]
)
def test_what_is_neither_is_refused(given):
    with pytest.raises(TrimixError, match="think_end_token"):
        settings.parse({"pretrained": "a", "policy": "large_ins", "think_end_token": given})


def test_an_id_that_is_none_is_refused_before_models_are_loaded(pico, monkeypatch):
    from trimix_lm_eval import llm

    monkeypatch.setattr(llm, "load_model", lambda *_: pytest.fail("loaded"))
    for name in ("think_end_token", "prefix_token_id"):
        with pytest.raises(TrimixError, match=f"{name}=9999 is no token"):
            TriMix.from_pretrained(pico("llama")["small_cpt"], policy="large_ins", **{name: "9999"})


def test_thinking_needs_to_be_told_where_it_ends():
    given = {"pretrained": "a", "policy": "large_ins", "enable_thinking": True}
    with pytest.raises(TrimixError, match=r"enable_thinking=true.*\n?.*think_end_token=</think>"):
        settings.parse(given)
    assert settings.parse({**given, "think_end_token": END}).enable_thinking
    assert not settings.parse({**given, "enable_thinking": False}).enable_thinking


# ---------------------------------------------------------------- through lm-eval


def test_counted_in_results_and_log(pico, monkeypatch, tmp_path):
    log = tmp_path / "weights.jsonl"
    given = model_args(
        pico("llama"), policy="fixed", think_end_token=END, enable_thinking=True, weights_log=log
    )
    lm = TriMixLM(**given)
    how = {"until": ["\n"], "max_gen_toks": 20}
    for task, text in (("done", "a\n</think>42\nb"), ("cut", "a\nb\nc"), ("ended", "a\n|")):
        asked = instances("generate_until", [("x", how), ("y", how)], task)
        with monkeypatch.context() as patch:
            play(patch, lm.model, script(lm.model, text))
            want = "42" if task == "done" else ""
            assert lm.generate_until(asked, disable_tqdm=True) == [want] * 2
    told = lm.get_model_info()["trimix"]
    assert told["unfinished_thoughts"] == {"cut": 2, "done": 0, "ended": 2}
    assert told["finish_reasons"] == {
        "cut": {"length": 2},
        "done": {"stop": 2},
        "ended": {"eos": 2},
    }
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    unfinished = [line["task"] for line in lines if line.get("unfinished_thought")]
    assert unfinished == ["cut", "cut", "ended", "ended"]
    assert {line["finish_reason"] for line in lines} == {"stop", "length", "eos"}
    pairs = instances("loglikelihood", [("x", " y")], "choices")
    with pytest.raises(TrimixError, match="log-likelihood tasks .choices"):
        lm.loglikelihood(pairs, disable_tqdm=True)
