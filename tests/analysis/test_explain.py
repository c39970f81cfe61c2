"""``trimix explain``: its numbers against transformers alone, its page, what it refuses."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import pickle
import re
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch

from tests.analysis.test_export import submittable
from tests.support.results_files import trimix_config, write_run
from tests.support.running import flat, model_args, program
from trimix_lm_eval import cli
from trimix_lm_eval.analysis.explain import explain, explain_given, explain_text, page
from trimix_lm_eval.analysis.explain.pieces import Pieces
from trimix_lm_eval.analysis.explain.run import _compared, _Record
from trimix_lm_eval.engine.sampler import SamplingParams
from trimix_lm_eval.engine.sequence import NewTokens
from trimix_lm_eval.fusion.weights import Weights
from trimix_lm_eval.loading import recorded, settings
from trimix_lm_eval.loading.source_spec import PREFIXES
from trimix_lm_eval.utils.errors import TrimixError
from trimix_lm_eval.utils.windows import continuation_windows, rolling_windows

PROMPT = "The hen went to the བོད་ barn"
POINT = Weights(0.3, 0.9, 0.5)
FIXED = {"alpha": 0.3, "beta": 0.9, "gamma": 0.5}
#: Few positions at a time, so that chunks have borders.
CHUNKED = {"chunk_tokens": 5, "logit_positions": 3}


def ids_of(three, prompt):
    return list(three.model.codec.prompt(prompt).ids)


def check_against_naive(three, context, tokens, weights_at, plausibility=None):
    """Every number of every token, from the logits of transformers; ``weights_at(t)`` by source."""
    ids = [*context, *(token.id for token in tokens)]
    names = [share.source for share in tokens[0].shares]
    logits = {name: three.naive.logits(name, ids) for name in names}
    for t, token in enumerate(tokens):
        at = len(context) - 1 + t
        weights = weights_at(t)
        z = {name: logits[name][at] for name in names}
        bare = fused = sum(weights[name] * z[name] for name in names)
        if plausibility:
            reference = z["large_ins"]
            allowed = reference > reference.max() + math.log(plausibility)
            fused = bare.masked_fill(~allowed, -torch.inf)
            assert token.cutoff.kept == int(allowed.sum())
            assert token.cutoff.plausible == bool(allowed[token.id])
            removed = int(bare.argmax())
            expected = None if allowed[removed] else removed
            assert (token.cutoff.removed.id if token.cutoff.removed else None) == expected
        others = fused.clone()
        others[token.id] = -torch.inf
        if others.max().isneginf():
            assert token.cutoff.alone
            others = bare.clone()
            others[token.id] = -torch.inf
        rival = int(others.argmax())
        assert token.runner_up.id == rival
        lead = {name: float(z[name][token.id] - z[name][rival]) for name in names}
        for share in token.shares:
            name = share.source
            assert share.weight == pytest.approx(weights[name], abs=1e-5)
            assert share.contribution == pytest.approx(weights[name] * lead[name], abs=1e-4)
            assert share.rank == 1 + int((z[name] > z[name][token.id]).sum())
            assert share.probability == pytest.approx(
                float(z[name].softmax(-1)[token.id]), rel=1e-3
            )
            assert [c.id for c in share.top] == z[name].topk(5).indices.tolist()
        assert sum(share.contribution for share in token.shares) == token.margin
        assert token.margin == pytest.approx(float(bare[token.id] - bare[rival]), abs=1e-4)
        assert token.probability == pytest.approx(float(fused.softmax(-1)[token.id]), rel=1e-3)
        assert token.rank == 1 + int((fused > fused[token.id]).sum())
        best = max(token.shares, key=lambda share: share.contribution)
        assert token.owner == (best.source if best.contribution > 0 else None)


# ---------------------------------------------------------------- the numbers


def test_contributions_sum_to_the_margin(trio):
    three = trio("llama")
    model = three.weighted("fixed", **FIXED, **CHUNKED)
    model.stop_token_ids = (frozenset(),)  # a text of some length
    it = explain(model, PROMPT, SamplingParams(max_new_tokens=14))
    assert len(it.tokens) == 14 and it.finish_reason == "length" and not it.notes
    assert (it.alpha, it.beta, it.gamma) == POINT
    assert model.generate([PROMPT], max_new_tokens=14) == [it.text]
    assert all(token.margin > 0 and token.rank == 1 for token in it.tokens)
    check_against_naive(three, ids_of(three, PROMPT), it.tokens, lambda t: POINT.by_source())


def test_gate_has_weights_of_its_own_at_every_token(trio):
    three = trio("gemma3")
    it = explain(three.weighted("gate", **CHUNKED), PROMPT, SamplingParams(max_new_tokens=10))
    context = ids_of(three, PROMPT)
    ids = [*context, *(token.id for token in it.tokens)]
    host, scorer = three.naive.logits("large_ins", ids), three.naive.logits("small_cpt", ids)

    def weights_at(t):
        at = len(context) - 1 + t
        w = 1 - float(scorer[at].softmax(-1)[host[at].argmax()])
        return {"large_ins": 1 - w, "small_cpt": w}

    assert it.alpha is None
    assert len({share.weight for token in it.tokens for share in token.shares}) > 4
    check_against_naive(three, context, it.tokens, weights_at)


def test_contributions_to_a_mixture_sum_to_its_margin_too(trio):
    three = trio("llama")
    model = three.weighted("mixture", alpha=0.3, beta=0.5, **CHUNKED)
    it = explain(model, PROMPT, SamplingParams(max_new_tokens=10))
    context, weights = ids_of(three, PROMPT), Weights(0.3, 0.5).by_source()
    ids = [*context, *(token.id for token in it.tokens)]
    for t, token in enumerate(it.tokens):
        p = {
            s.source: three.naive.logits(s.source, ids)[len(context) - 1 + t] for s in token.shares
        }
        p = {name: z.softmax(-1) for name, z in p.items()}
        mixed = sum(weights[name] * p[name] for name in p)
        rival = token.runner_up.id
        margin = float(mixed[token.id].log() - mixed[rival].log())
        assert token.margin == pytest.approx(margin, abs=1e-4) and margin > 0
        assert token.probability == pytest.approx(float(mixed[token.id]), rel=1e-3)
        for share in token.shares:
            ahead = p[share.source][token.id] - p[share.source][rival]
            part = float(weights[share.source] * ahead / (mixed[token.id] - mixed[rival]))
            assert share.contribution == pytest.approx(part * margin, abs=1e-4)


@pytest.mark.parametrize("plausibility", [0.2, 0.97])
def test_plausibility_cut_offs(trio, plausibility):
    three = trio("llama")
    point = Weights(0.1, 0.9)
    model = three.weighted(
        "fixed", alpha=0.1, beta=0.9, plausibility=plausibility, speculative=2, **CHUNKED
    )
    it = explain(model, PROMPT, SamplingParams(max_new_tokens=10))
    check_against_naive(
        three, ids_of(three, PROMPT), it.tokens, lambda t: point.by_source(), plausibility
    )
    assert any(token.cutoff.removed for token in it.tokens)
    if plausibility > 0.9:
        assert any(token.cutoff.alone for token in it.tokens)


def test_given_options(trio):
    """The log-likelihoods are those of scoring, and so are the weights, chosen once for all."""
    three = trio("llama")
    model = three.weighted("ppl", **CHUNKED)
    pairs = [("The hen in the barn.", " a rat there"), ("The hen in the barn.", " བོད")]
    scores = model.loglikelihood(pairs)
    found = explain_given(model, pairs)
    for it, score, (_, continuation) in zip(found, scores, pairs, strict=True):
        assert it.kind == "given" and it.text == continuation and not it.notes
        assert it.log_likelihood == pytest.approx(score.log_likelihood, abs=1e-5)
        total = sum(math.log(token.probability) for token in it.tokens)
        assert total == pytest.approx(score.log_likelihood, abs=1e-4)
        assert Weights(it.alpha, it.beta) == score.choice.weights
        weights = score.choice.weights.by_source()
        check_against_naive(three, ids_of(three, pairs[0][0]), it.tokens, lambda t, w=weights: w)


def test_cut_prompts_are_told_of(trio):
    three = trio("llama")
    model = three.weighted("fixed", max_length=20, alpha=0.1, beta=0.9)
    text = "There were rivers in the barn. "
    it = explain(model, text, SamplingParams(max_new_tokens=8))
    assert any("no room for the first" in note for note in it.notes)
    context = ids_of(three, text)[-12:]
    check_against_naive(three, context, it.tokens, lambda t: Weights(0.1, 0.9).by_source())
    (given,) = explain_given(model, [(text, "the hen")])
    assert any("no room for the first" in note for note in given.notes)


LONG = "The hen went to the བོད་ barn and there were rivers."


def check_windows(three, windows, tokens, weights_at):
    """Windows one after the other, with ``weights_at(t)`` of the whole text."""
    done = 0
    for context, part in windows:
        mine = tokens[done : done + len(part)]
        assert [token.id for token in mine] == list(part)
        check_against_naive(three, list(context), mine, lambda t, d=done: weights_at(d + t))
        done += len(part)
    assert done == len(tokens)


def test_continuations_longer_than_the_context(trio):
    three = trio("llama")
    model = three.weighted("ppl", max_length=20, **CHUNKED)
    pairs = [("The hen", LONG), ("The hen", " a rat")]
    scores = model.loglikelihood(pairs)
    found = explain_given(model, pairs)
    for it, score in zip(found, scores, strict=True):
        assert it.log_likelihood == pytest.approx(score.log_likelihood, abs=1e-5)
        total = sum(math.log(token.probability) for token in it.tokens)
        assert total == pytest.approx(score.log_likelihood, abs=1e-3)
        assert Weights(it.alpha, it.beta) == score.choice.weights
    ids, target = model.codec.pair("The hen", LONG)
    windows = continuation_windows(ids.ids, target, model.max_length)
    assert len(windows) > 2 and all(len(a) + len(b) - 1 <= 20 for a, b in windows)
    weights = scores[0].choice.weights.by_source()
    check_windows(three, windows, found[0].tokens, lambda t: weights)
    assert any(f"read in {len(windows)} windows" in note for note in found[0].notes)
    assert not any("windows" in note for note in found[1].notes)


@pytest.mark.parametrize("max_length", [20, 90])
def test_texts_without_a_prompt(trio, max_length):
    """Each token with the weights that suit those before it, over all windows."""
    three = trio("llama")
    model = three.weighted("ppl", max_length=max_length, grid="0.1:0.9;0.7:0.3;1:0", **CHUNKED)
    (score,) = model.loglikelihood_rolling([LONG])
    it = explain_text(model, LONG)
    assert it.text == LONG and it.prompt == "" and it.alpha is None and it.kind == "given"
    assert it.log_likelihood == pytest.approx(score.log_likelihood, abs=1e-5)
    total = sum(math.log(token.probability) for token in it.tokens)
    assert total == pytest.approx(score.log_likelihood, abs=1e-3)
    assert any("windows" in note for note in it.notes) == (max_length == 20)
    assert it.notes[-1].startswith("There is no prompt")

    windows = rolling_windows(model.codec.encode(LONG), model.codec.prefix_id, max_length)
    points = model.fuser.configs[0].policy.points()
    nll = []  # of each token, under each point
    for context, part in windows:
        ids = [*context, *part]
        logits = {name: three.naive.logits(name, ids) for name in ("large_ins", "small_cpt")}
        for t, token in enumerate(part, len(context) - 1):
            fused = [sum(w * logits[s][t] for s, w in p.by_source().items() if w) for p in points]
            nll.append([float(-z.log_softmax(-1)[token]) for z in fused])
    used = []
    for t, token in enumerate(it.tokens):
        weights = {share.source: share.weight for share in token.shares}
        sums = [sum(row[p] for row in nll[:t]) for p in range(len(points))]
        (chosen,) = [
            p
            for p, point in enumerate(points)
            if all(w == pytest.approx(point.by_source()[s]) for s, w in weights.items())
        ]
        assert t == 0 or sums[chosen] == pytest.approx(min(sums), abs=1e-3)
        used.append(points[chosen].by_source())
    assert len({tuple(weights.values()) for weights in used}) > 1
    check_windows(three, windows, it.tokens, lambda t: used[t])


@pytest.mark.parametrize("policy", ["fixed", "gate"])
def test_texts_without_a_prompt_under_other_policies(trio, policy):
    three = trio("llama")
    given = {"alpha": 0.3, "beta": 0.6} if policy == "fixed" else {}
    model = three.weighted(policy, max_length=20, **given)
    (score,) = model.loglikelihood_rolling([LONG])
    it = explain_text(model, LONG)
    assert (it.alpha, it.beta) == ((0.3, 0.6) if given else (None, None))
    total = sum(math.log(token.probability) for token in it.tokens)
    assert total == pytest.approx(score.log_likelihood, abs=1e-3)


@pytest.mark.parametrize("max_length", [20, 90])
def test_weights_that_follow_a_text(trio, max_length):
    """Each token is explained by the weights that it was scored or written with."""
    model = trio("llama").weighted("bayes", max_length=max_length, share=0.1, **CHUNKED)
    pairs = [("The hen", LONG), ("The hen", " a rat")]
    (rolling,) = model.loglikelihood_rolling([LONG])
    likelihoods = [score.log_likelihood for score in model.loglikelihood(pairs)]
    found = [*explain_given(model, pairs), explain_text(model, LONG)]
    for it, likelihood in zip(found, [*likelihoods, rolling.log_likelihood], strict=True):
        total = sum(math.log(token.probability) for token in it.tokens)
        assert total == pytest.approx(likelihood, abs=1e-3)
        weights = [[share.weight for share in token.shares] for token in it.tokens]
        assert all(sum(one) == pytest.approx(1, abs=1e-5) for one in weights)
        assert not any("Scoring gave" in note for note in it.notes)
        # Of an answer that is read in windows each begins with the prompt's weights.
        windows = 4 if max_length == 20 and it.prompt else 1
        assert len({tuple(one) for one in weights}) > len(weights) - windows
    written = explain(model, "The hen", SamplingParams(max_new_tokens=8))
    assert all(token.rank == 1 for token in written.tokens)
    weights = [[share.weight for share in token.shares] for token in written.tokens]
    assert len({tuple(one) for one in weights}) == len(weights)


# ---------------------------------------------------------------- drafts


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_drafts_stand_where_small_cpt_was_right(trio, temperature):
    three = trio("llama")
    point = {"alpha": 0.3, "beta": 0.6}
    how = SamplingParams(max_new_tokens=24, temperature=temperature, seed=6)
    plain = explain(three.weighted("fixed", speculative="off", **point), PROMPT, how)
    assert plain.drafting is None and not any(token.draft for token in plain.tokens)
    it = explain(three.weighted("fixed", speculative=3, **point), PROMPT, how)
    undrafted = [dataclasses.replace(token, draft=None) for token in it.tokens]
    assert [t.id for t in undrafted] == [t.id for t in plain.tokens] and it.text == plain.text
    stood = [token for token in it.tokens if token.draft and token.draft.stood]
    refused = [token for token in it.tokens if token.draft and not token.draft.stood]
    assert (len(stood), len(refused)) == (it.drafting.stood, it.drafting.refused)
    assert stood and refused and it.drafting.tried >= len(stood) + len(refused)
    assert it.tokens[0].draft is None, "the prompt's own pass gives the first token"
    for token in refused:
        assert token.draft.refused.id != token.id
    if temperature:
        assert it.kind == "sampled" and "sampled" in it.notes[0]
        return
    for token in it.tokens:
        cpt = next(share for share in token.shares if share.source == "small_cpt")
        if token.draft:
            draft = token.id if token.draft.stood else token.draft.refused.id
            assert cpt.top[0].id == draft, "small_cpt drafts its own favourite"


def test_a_text_started_anew_is_recorded_anew():
    record, weights = _Record(SimpleNamespace(n=0, update=lambda n: None)), [torch.zeros(1)]
    for place, gain in (
        (0, NewTokens([5], weights, 0, 0)),
        (1, NewTokens([6, 7], weights, 3, 1, 9)),
        (0, NewTokens([5], weights, 0, 0)),
        (1, NewTokens([6, 7, 8], weights, 2, 2)),
    ):
        record(0, place, gain)
    assert record.tokens == [5, 6, 7, 8]
    assert record.drafts == [(False, None), (True, None), (True, None), (False, None)]
    assert sum(record.tried.values()) == 2


def test_why_a_text_ends(trio):
    three = trio("llama")
    model = three.weighted("fixed", speculative=3, alpha=0.1, beta=0.9)
    whole = explain(model, PROMPT, SamplingParams(max_new_tokens=20))
    stop = next(token.text for token in whole.tokens if token.text.isalnum())
    it = explain(model, PROMPT, SamplingParams(max_new_tokens=20, stop=(stop,)))
    assert it.finish_reason == "stop" and stop not in it.text
    assert it.tokens[-1].text.endswith(stop) and len(it.tokens) < 20
    end = whole.tokens[6].id
    first = [token.id for token in whole.tokens].index(end)
    model.stop_token_ids = (frozenset([end]),)
    it = explain(model, PROMPT, SamplingParams(max_new_tokens=20))
    assert it.finish_reason == "eos" and [t.id for t in it.tokens] == [
        t.id for t in whole.tokens[: first + 1]
    ]


def test_what_is_not_the_most_probable_token_is_told_of(trio):
    it = explain(trio("llama").weighted("fixed"), PROMPT, SamplingParams(max_new_tokens=4))
    assert _compared(it.tokens, 0.0) == []
    off = [dataclasses.replace(it.tokens[0], rank=2), *it.tokens[1:]]
    (note,) = _compared(off, 0.0)
    assert note.startswith("At 1 of 4 tokens (1) decoding")


# ---------------------------------------------------------------- tokens as text


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("the hen", ["the", " ", "h", "e", "n"]),
        ("བོད་", ["བོ", "ད", "་"]),  # a vowel sign belongs to its letter
        ("శ్రీ", ["శ్రీ"]),  # consonants that a virama joins
        ("ئا\n", ["ئ", "ا", "\n"]),
        ("é", ["é"]),
    ],
)
def test_tokens_that_make_up_a_character_are_grouped(trio, text, groups):
    model = trio("llama").model
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    found = Pieces(model.tokenizer).groups(ids)
    assert [group.text for group in found] == groups
    assert [group.first for group in found] == [0, *(group.end for group in found[:-1])]
    assert found[-1].end == len(ids)


def test_bytes_that_are_no_character_are_hexadecimal(trio):
    tokenizer = trio("llama").model.tokenizer
    ids = tokenizer.encode("ད", add_special_tokens=False)
    pieces = Pieces(tokenizer)
    assert [pieces.label(i) for i in ids] == ["⟨E0⟩", "⟨BD⟩", "⟨91⟩"]
    groups = pieces.groups([*ids[:2], 257, *tokenizer.encode("\x00a\ufffd")])
    shown = "".join(group.text for group in groups)
    assert shown == "⟨E0⟩⟨BD⟩</s>⟨00⟩a⟨EF BF BD⟩"


def test_sentencepiece_tokens():
    words = ["▁hen", "<0xE0>", "<0xBD>", "<0x91>"]
    tokenizer = SimpleNamespace(
        convert_ids_to_tokens=lambda i: words[i] if i < 4 else None, added_tokens_decoder={}
    )
    pieces = Pieces(tokenizer)
    assert [(g.text, g.first, g.end) for g in pieces.groups([0, 1, 2, 3])] == [
        (" hen", 0, 1),
        ("ད", 1, 4),
    ]
    assert pieces.label(7) == "[7]"


# ---------------------------------------------------------------- the page


def about(model):
    return page.About("<b>a title</b>", [("fact", "<i>")], model.describe())


def test_page_is_escaped_and_complete_in_itself(trio):
    three = trio("llama")
    model = three.weighted("fixed", speculative=3, plausibility=0.1, **FIXED)
    prompt = "<script>alert(1)</script> བོད་"
    it = explain(model, prompt, SamplingParams(max_new_tokens=20))
    html = page.render(about(model), [it])
    assert "<script>alert" not in html and "&lt;script&gt;alert(1)" in html
    assert "<b>a title" not in html and "<i>:" not in html
    assert html.count("<script") == 1 and 'dir="auto"' in html
    assert not re.search(r"https?:|//[a-z]|@import|url\(|\ssrc=|<link|<iframe", html)
    assert set(re.findall(r'href="(.)', html.partition("<script>")[0])) == {"#"}
    assert "\ufffd" not in html and "\x00" not in html
    targets, links = re.findall(r'id="(e0t\d+)"', html), re.findall(r'href="#(e0t\d+)"', html)
    assert len(targets) == len(it.tokens) and len(links) == len(it.groups)
    assert set(links) <= set(targets)
    for token in it.tokens:
        assert page.signed(token.margin) in html and page.percent(token.probability) in html
    for name in ("large_ins", "small_cpt", "small_base", "large_base"):
        assert f'class="swatch {name}"' in html


def test_bars_are_to_scale(trio):
    it = explain(
        trio("llama").weighted("fixed", **FIXED), PROMPT, SamplingParams(max_new_tokens=12)
    )
    section = page._section(0, it, [it], "fixed")
    zero, scales = section["zero"], set()
    for token, bar in zip(it.tokens, section["bars"], strict=True):
        ends = [(s["left"], s["left"] + s["width"]) for s in bar]
        assert all(left >= -1e-9 and right <= 100 + 1e-9 for left, right in ends)
        right = max(right for left, right in ends if left >= zero - 1e-9)
        left = min(left for left, _ in ends)
        net = (right - zero) - (zero - left)
        scales.add(round(net / token.margin, 3))
    assert len(scales) == 1


@pytest.mark.parametrize(
    ("probability", "shown"), [(0.5, "50 %"), (0.034, "3.4 %"), (1e-6, "< 0.01 %"), (0, "0 %")]
)
def test_percent(probability, shown):
    assert page.percent(probability) == shown


def test_json_holds_the_same_numbers(trio):
    model = trio("llama").weighted("fixed", speculative=3, **FIXED)
    it = explain(model, PROMPT, SamplingParams(max_new_tokens=8))
    (read,) = json.loads(page.as_json(about(model), [it]))["explanations"]
    assert read == json.loads(json.dumps(dataclasses.asdict(it)))
    for token in read["tokens"]:
        total = sum(share["contribution"] for share in token["shares"])
        assert total == pytest.approx(token["margin"])


# ---------------------------------------------------------------- logged samples and the command


def log(folder, sample, arguments=None, **trimix):
    """A run's results and one sample as lm-eval logs them."""
    policy = trimix_config("fixed", alpha=0.1, beta=0.9)
    results = write_run(folder, {"t": [1.0]}, trimix=policy | trimix, samples=False)
    whole = json.loads(results.read_text())
    whole["config"]["model_args"] = arguments
    results.write_text(json.dumps(whole))
    file = folder / f"samples_t_{results.stem.removeprefix('results_')}.jsonl"
    file.write_text(json.dumps({"doc_id": 3, "target": "x", **sample}) + "\n")
    return file


def asked(tmp_path, *words):
    """Run the command in this process; returns the JSON and the page."""
    out, numbers = tmp_path / "new" / "x.html", tmp_path / "x.json"
    assert cli.main(["explain", *words, "--output", str(out), "--json", str(numbers)]) == 0
    return json.loads(numbers.read_text(encoding="utf-8")), out.read_text(encoding="utf-8")


def test_a_logged_generation(pico, trio, tmp_path):
    """The models are those of the results beside it; the text is the one that was logged."""
    arguments = model_args(pico("llama"), policy="fixed", alpha=0.1, beta=0.9, dtype="float32")
    model = trio("llama").weighted("fixed", alpha=0.1, beta=0.9)
    (text,) = model.generate([PROMPT], max_new_tokens=9, stop=["\n"])
    kwargs = "{'until': ['\\n'], 'max_gen_toks': 9, 'do_sample': False}"
    sample = {
        "arguments": {"gen_args_0": {"arg_0": PROMPT, "arg_1": kwargs}},
        "resps": [[text]],
    }
    file = log(tmp_path, sample, arguments)
    found, _ = asked(tmp_path, "--samples", str(file), "--doc", "3")
    assert found["title"] == "t, document 3" and found["facts"] == {"right answer, as logged": "x"}
    (it,) = found["explanations"]
    assert it["text"] == text and it["notes"] == []
    file = log(tmp_path, {**sample, "resps": [["something <else>"]]}, arguments)
    found, html = asked(tmp_path, "--samples", str(file), "--doc", "3")
    assert "something &lt;else&gt;" in html and "not the logged one" in html


def test_logged_options_and_the_point_of_their_task(pico, tmp_path):
    arguments = model_args(pico("llama"), policy="ppl_task", dtype="float32")
    sample = {
        "arguments": {
            "gen_args_0": {"arg_0": "The hen", "arg_1": " went"},
            "gen_args_1": {"arg_0": "The hen", "arg_1": " in"},
        },
        "resps": [[["-1.0", "False"]], [["-2.0", "False"]]],
    }
    file = log(tmp_path, sample, arguments, task_points={"t": "0.7:0.3"})
    found, html = asked(tmp_path, "--samples", str(file), "--doc", "3")
    assert [it["text"] for it in found["explanations"]] == [" went", " in"]
    assert all((it["alpha"], it["beta"]) == (0.7, 0.3) for it in found["explanations"])
    assert "Option 2 of 2" in html and html.count("the most likely one") == 1
    # Other models: the point is chosen anew, and what that means is told.
    found, _ = asked(
        tmp_path, "--samples", str(file), "--doc", "3", "--model_args", flat(arguments)
    )
    assert "for a whole task" in found["explanations"][0]["notes"][0]


def test_a_logged_text_without_a_prompt(pico, trio, tmp_path):
    arguments = model_args(pico("llama"), policy="ppl", dtype="float32")
    sample = {"arguments": {"gen_args_0": {"arg_0": LONG}}, "resps": [["-9.5"]]}
    file = log(tmp_path, sample, arguments)
    found, html = asked(tmp_path, "--samples", str(file), "--doc", "3")
    (it,) = found["explanations"]
    (score,) = trio("llama").weighted("ppl").loglikelihood_rolling([LONG])
    assert it["text"] == LONG and found["facts"] == {}
    assert it["log_likelihood"] == pytest.approx(score.log_likelihood, abs=1e-4)
    assert "weights chosen anew at every token" in html and "The prompt, 0" not in html
    # Options without a question have no prompt either, and are no such text.
    options = {"gen_args_0": {"arg_0": "", "arg_1": "a"}, "gen_args_1": {"arg_0": "", "arg_1": "b"}}
    file = log(tmp_path, {"arguments": options, "resps": [[["-1", "False"]]] * 2}, arguments)
    found, _ = asked(tmp_path, "--samples", str(file), "--doc", "3")
    assert [it["text"] for it in found["explanations"]] == ["a", "b"]


RESPONSE = {"resps": [["a"]]}
GENERATED = {"arguments": {"gen_args_0": {"arg_0": "a", "arg_1": "{'until': []}"}}}


@pytest.mark.parametrize(
    ("sample", "doc", "message"),
    [
        (GENERATED, "3", "no responses"),
        (RESPONSE, "3", "no arguments"),
        (GENERATED | RESPONSE, "4", "no document 4.\n  -> it has: 3"),
        ({"arguments": {"gen_args_0": {"arg_0": "a", "arg_1": "{'until"}}, **RESPONSE}, "3", "not"),
        (GENERATED | {"resps": [[]]}, "3", "not written as lm-eval writes"),
    ],
)
def test_samples_that_cannot_be_explained(tmp_path, capsys, sample, doc, message):
    file = log(tmp_path, sample)
    words = ["explain", "--samples", str(file), "--doc", doc, "--output", str(tmp_path / "x.html")]
    assert cli.main(words) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said
    assert not (tmp_path / "x.html").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", ""], "The prompt is empty"),
        (["--prompt", "x"], "No models are named"),
        (["--prompt", "x", "--doc", "3"], "--doc names a document"),
        (["--prompt-file", "{}/none.txt"], "none.txt cannot be read"),
        (["--samples", "{}/none.jsonl", "--doc", "0"], "none.jsonl cannot be read: No such file"),
        (["--samples", "{}/half.jsonl", "--doc", "0"], "half.jsonl holds no samples"),
        (["--samples", "{}/empty.jsonl", "--doc", "0"], "has no document 0.\n  -> it has: none"),
        (["--samples", "{}/twice.jsonl", "--doc", "0"], "line 2 is ambiguous: an object in it has"),
        (["--samples", "{}/pipe", "--doc", "0"], "pipe is no file but a folder, a pipe"),
        (["--prompt", "x", "--model_args", "policy=ppl,policy=ent"], "'policy' is given twice"),
        (["--samples", "{}/empty.jsonl"], "Which document"),
        (["--samples", "{}/alone.jsonl", "--doc", "0"], "no models are named"),
        (["--prompt", "x", "--output", "{}"], "is a folder"),
        (["--prompt", "x", "--json", "{}/half.jsonl/x.json"], "cannot be written"),
    ],
)
def test_one_message_and_no_page(tmp_path, capsys, words, message):
    (tmp_path / "half.jsonl").write_text('{"doc_id": 0, "argu')
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "twice.jsonl").write_text('\n{"doc_id": 1, "doc_id": 0}')
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "alone.jsonl").write_text(json.dumps({"doc_id": 0, **GENERATED, **RESPONSE}))
    given = [word.replace("{}", str(tmp_path)) for word in words]
    if "--output" not in given:
        given += ["--output", str(tmp_path / "x.html")]
    assert cli.main(["explain", *given]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said and "Traceback" not in said
    assert not (tmp_path / "x.html").exists()


def test_texts_that_cannot_be_explained(trio):
    model = trio("llama").weighted("fixed", max_length=12)
    with pytest.raises(TrimixError, match="prompt is empty"):
        explain(model, "")
    with pytest.raises(TrimixError, match="continuation is empty"):
        explain_given(model, [("The hen", "")])
    with pytest.raises(TrimixError, match="text is empty"):
        explain_text(model, "")


def test_the_command_on_the_demo(tmp_path):
    (tmp_path / "prompt.txt").write_text("The old king <i>went\n", encoding="utf-8")
    words = ["--prompt-file", str(tmp_path / "prompt.txt"), "--gen_kwargs", "max_gen_toks=6"]
    ran = program(
        *("-m", "trimix_lm_eval", "explain", "--model_args", "pretrained=demo", "policy=ppl"),
        *words,
        *("--output", str(tmp_path / "x.html"), "--json", str(tmp_path / "x.json")),
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == f"wrote {tmp_path / 'x.html'}\nwrote {tmp_path / 'x.json'}\n"
    (it,) = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))["explanations"]
    assert it["prompt"] == "The old king <i>went" and len(it["tokens"]) == 6
    html = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert "The old king &lt;i&gt;went" in html


# ---------------------------------------------------------------- files of others

CODE = "open({canary!r}, 'w').close()\n"


@pytest.fixture
def hostile(pico, tmp_path, monkeypatch):
    """A model's folder with code of its own, and a module that only imports write a canary for."""
    canary = tmp_path / "canary"
    folder = tmp_path / "model"
    shutil.copytree(pico("llama")["large_ins"], folder)
    for name in ("modeling_x", "configuration_x", "tokenization_x"):
        (folder / f"{name}.py").write_text(CODE.format(canary=str(canary)))
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "configuration_x.C",
        "AutoModelForCausalLM": "modeling_x.M",
        "AutoTokenizer": ["tokenization_x.T", None],
    }
    (folder / "config.json").write_text(json.dumps(config))
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "evil_policy_17.py").write_text(CODE.format(canary=str(canary)))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    return SimpleNamespace(folder=folder, canary=canary)


OWN_CODE = {"trust_remote_code": True, "large_trust_remote_code": True}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (OWN_CODE, "left out: large_trust_remote_code, trust_remote_code of results_"),
        ({"policy": "evil_policy_17:P"}, "code is not imported because a results file names it"),
        ({"policy": ["evil_policy_17:P"]}, "is no installed policy"),
        ({"weights_log": "{canary}"}, "left out: weights_log of results_"),
        (
            {"attn_implementation": "evil/kernel", "use_fast": False},
            "left out: attn_implementation",
        ),
        ({"cache_dir": "{canary}", "token": "hf_x"}, "left out: cache_dir, token of results_"),
        ({"optimum": "newton"}, "refine=quadratic"),
    ],
)
@pytest.mark.parametrize("as_text", [False, True])
def test_a_results_file_switches_nothing_on(hostile, tmp_path, capsys, more, message, as_text):
    """No code runs, no file is written, and what was left out is said in one line."""
    more = {
        k: str(v).format(canary=hostile.canary) if k != "policy" else v for k, v in more.items()
    }
    given = {"pretrained": str(hostile.folder), "policy": "fixed", "alpha": 1, "beta": 0, **more}
    sample = {**GENERATED, **RESPONSE}
    file = log(tmp_path, sample, flat(given) if as_text else given)
    words = ["explain", "--samples", str(file), "--doc", "3", "--output", str(tmp_path / "x.html")]
    cli.main(words)  # the model needs code of its own, which is refused
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said
    assert not hostile.canary.exists()
    assert not (tmp_path / "x.html").exists() or message.startswith("left out")


def test_every_argument_is_one_that_a_results_file_may_give_or_not():
    """Who adds an argument decides about it."""
    never = {"trust_remote_code", "attn_implementation", "weights_log"}
    assert set(recorded.OF_SOURCES) | set(recorded.OF_RUNS) | never == {
        one.name for one in (*settings.SOURCE_OPTIONS, *settings.RUN_OPTIONS)
    }
    every = dict.fromkeys(recorded.OF_EVERY_POLICY - {"policy", "large_ins"}, 1)
    found = recorded.read({**every, "policy": "gate", "scorer": "small_cpt", "more": 1}, "x.json")
    left_out = {"more", "weights_log"}
    left_out |= {
        p + name for p in PREFIXES for name in ("trust_remote_code", "attn_implementation")
    }
    assert set(found.left_out) == left_out
    assert found.arguments == {k: v for k, v in every.items() if k not in left_out} | {
        "policy": "gate",
        "scorer": "small_cpt",
    }


@pytest.mark.parametrize(
    "given", [5, ["pretrained=x"], "{" * 100_000, '{"a"', '{"1": 2} 3', "a=" * 3]
)
def test_arguments_that_are_none(tmp_path, capsys, given):
    file = log(tmp_path, {**GENERATED, **RESPONSE}, given)
    words = ["explain", "--samples", str(file), "--doc", "3", "--output", str(tmp_path / "x.html")]
    assert cli.main(words) == 1
    said = capsys.readouterr().err
    assert "error: " in said and "Traceback" not in said


def test_what_reads_results_runs_nothing_either(hostile, tmp_path, monkeypatch):
    """Report, leaderboard and each format of an export."""
    monkeypatch.chdir(tmp_path)
    told = trimix_config("evil", honesty="label_free", **{"class": "evil_policy_17:P"})
    results = submittable(tmp_path / "r", trimix=told)
    whole = json.loads(results.read_text())
    whole["config"]["model_args"] = {
        **OWN_CODE,
        "policy": "evil_policy_17:P",
        "weights_log": str(hostile.canary),
    }
    results.write_text(json.dumps(whole))
    pages = [["report", "r"], ["leaderboard", "r"]]
    for words in [*pages, *(["export", "r", "--to", to] for to in ("csv", "card"))]:
        assert cli.main([*words, "--output", f"out_{words[0]}_{words[-1]}"]) == 0
    assert not hostile.canary.exists() and "evil_policy_17" not in sys.modules
    assert (tmp_path / "out_leaderboard_r" / "index.html").is_file()
    (recipe,) = (tmp_path / "out_export_card" / "recipes").iterdir()
    assert "# policy=evil_policy_17:P is code that does not come with" in recipe.read_text()
    assert "trust_remote_code: " not in recipe.read_text()


def test_pickles_run_nothing(hostile, tmp_path):
    class Evil:
        def __reduce__(self):
            return open, (str(hostile.canary), "w")

    (hostile.folder / "model.safetensors").unlink()
    torch.save({"x": Evil()}, hostile.folder / "pytorch_model.bin")
    config = json.loads((hostile.folder / "config.json").read_text())
    del config["auto_map"]
    (hostile.folder / "config.json").write_text(json.dumps(config))
    given = {"pretrained": str(hostile.folder), "policy": "fixed", "alpha": 1, "beta": 0}
    file = log(tmp_path, {**GENERATED, **RESPONSE}, given)
    words = ["explain", "--samples", str(file), "--doc", "3", "--output", str(tmp_path / "x.html")]
    with contextlib.suppress(pickle.UnpicklingError):
        assert cli.main(words) == 1
    assert not hostile.canary.exists()


# ---------------------------------------------------------------- samples of any kind


def test_half_characters_are_replaced_and_told(pico, tmp_path, capsys):
    arguments = model_args(pico("llama"), policy="fixed", alpha=0.1, beta=0.9, dtype="float32")
    kwargs = "{'until': ['\\ud800'], 'max_gen_toks': 2}"
    sample = {
        "arguments": {"gen_args_0": {"arg_0": "The hen \udcff went", "arg_1": kwargs}},
        "resps": [["\ud800"]],
        "target": "\udfff",
    }
    file = log(tmp_path, sample, arguments)
    found, html = asked(tmp_path, "--samples", str(file), "--doc", "3")
    (it,) = found["explanations"]
    assert it["prompt"] == "The hen \ufffd went" and "is shown, as U+FFFD" in it["notes"][0]
    assert found["facts"] == {"right answer, as logged": "\ufffd"} and "The hen \ufffd went" in html
    found, html = asked(
        tmp_path,
        *("--prompt", "The\udcff", "--continuation", " hen\udcff", "--model_args", flat(arguments)),
    )
    (it,) = found["explanations"]
    assert (it["prompt"], it["text"]) == ("The\ufffd", " hen\ufffd") and it["notes"]


PARTS = (
    None,
    True,
    5,
    1e400,
    -1,
    "",
    "a",
    "{",
    "\ud800",
    [],
    [[]],
    [["a"]],
    {},
    {"arg_0": "a"},
    {"a": 1},
)
LOGGED = {
    "resps": PARTS,
    "arguments": PARTS,
    "target": PARTS,
    "arguments.gen_args_0": PARTS,
    "arguments.gen_args_0.arg_0": PARTS,
    "arguments.gen_args_0.arg_1": (
        *PARTS,
        *("{1: 2}", "[]", "5", "(" * 100_000, "{'until': 5}", "{'until': [None, 5, {}]}"),
        *(
            f"{{'max_gen_toks': {x}}}"
            for x in ("1e400", "-1", "'x'", "[1]", "10**5", "1" + "0" * 400)
        ),
        *(f"{{'do_sample': True, 'temperature': {x}}}" for x in ("1e400", "{}", "'x'", "-1")),
        {"max_gen_toks": 2, "top_k": 1e400, "do_sample": True},
    ),
}


@pytest.mark.parametrize("place", LOGGED)
def test_values_of_other_kinds_end_in_one_message(trio, tmp_path, capsys, monkeypatch, place):
    """Every field of a logged sample, with every kind of value: a page, or one message."""
    model = trio("llama").weighted("fixed", alpha=0.1, beta=0.9, max_length=12)
    monkeypatch.setattr("trimix_lm_eval.llm.TriMix.from_settings", lambda *_: model)
    for value in LOGGED[place]:
        sample = {
            "arguments": {"gen_args_0": {"arg_0": "ab", "arg_1": "{'max_gen_toks': 1}"}},
            "resps": [["a"]],
        }
        *above, last = place.split(".")
        at = sample
        for name in above:
            at = at[name]
        at[last] = value
        file = log(tmp_path, sample, {"pretrained": "x"})
        words = ["--samples", str(file), "--doc", "3", "--output", str(tmp_path / "x.html")]
        code = cli.main(["explain", *words])
        said = capsys.readouterr().err
        assert (code == 0) != ("error: " in said), (value, said)


# ---------------------------------------------------------------- the files that are written


def test_nothing_that_is_read_is_written_over(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = log(tmp_path, {**GENERATED, **RESPONSE}, {"pretrained": "demo"})
    results = next(tmp_path.glob("results_*"))
    (tmp_path / "prompt.txt").write_text("The hen")
    (tmp_path / "link.txt").symlink_to("prompt.txt")
    os.link(tmp_path / "prompt.txt", tmp_path / "hard.txt")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    demo = ["--model_args", "pretrained=demo"]
    for words in (
        [*demo, "--prompt", "x", "--output", "f", "--json", "f"],
        [*demo, "--prompt", "x", "--output", "f", "--json", "./sub/../f"],
        [*demo, "--prompt-file", "prompt.txt", "--output", "prompt.txt"],
        [*demo, "--prompt-file", "prompt.txt", "--json", "link.txt"],
        [*demo, "--prompt-file", "hard.txt", "--output", "prompt.txt"],
        ["--samples", str(file), "--doc", "3", "--output", file.name],
        ["--samples", str(file), "--doc", "3", "--json", results.name],
    ):
        assert cli.main(["explain", *words]) == 1
        assert "are the same file" in capsys.readouterr().err, words
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["x" * 300, "x" * 252, "a\0b", "loop/x", "~nosuchuser/\0"])
@pytest.mark.parametrize("option", ["--output", "--json", "--prompt-file", "--samples"])
def test_names_that_no_file_can_have(tmp_path, capsys, monkeypatch, option, name):
    """Told before any model is loaded."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    loaded = []
    monkeypatch.setattr("trimix_lm_eval.llm.TriMix.from_settings", loaded.append)
    words = ["--prompt", "x", "--model_args", "pretrained=demo", "--output", "o.html"]
    if option in ("--prompt-file", "--samples"):
        words = ["--doc", "0", *words[2:]] if option == "--samples" else words[2:]
    assert cli.main(["explain", *words, option, name]) == 1
    assert capsys.readouterr().err.startswith("error: ") and not loaded


@pytest.mark.parametrize("option", ["--prompt-file", "--samples"])
def test_devices_that_never_end(tmp_path, capsys, option):
    words = ["explain", option, "/dev/zero", "--model_args", "pretrained=demo"]
    words += ["--doc", "0"] if option == "--samples" else []
    assert cli.main([*words, "--output", str(tmp_path / "x.html")]) == 1
    assert "/dev/zero is a device" in capsys.readouterr().err


def test_the_page_may_load_nothing(trio):
    model = trio("llama").weighted("fixed", speculative="off", **FIXED)
    it = explain(model, PROMPT, SamplingParams(max_new_tokens=1))
    assert (
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">"
    ) in page.render(about(model), [it])
