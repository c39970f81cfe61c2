"""Sources with tokenizers of their own: scores and texts against a plain reference."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from contextlib import contextmanager

import pytest
import yaml

from tests.support.loaded import by_index
from tests.support.own_tokenizers import Alone, rows, write
from tests.support.running import TRIO, answers, evaluate, flat, instances, model_args
from tests.support.sweeping import config, make_lm_eval_quick, write_tasks, written
from trimix_lm_eval import SequenceFusion, TriMix
from trimix_lm_eval.analysis import results
from trimix_lm_eval.cli import main
from trimix_lm_eval.engine.input_batch import InputBatch
from trimix_lm_eval.engine.sampler import SamplingParams
from trimix_lm_eval.fusion.weights import SOURCES, Weights
from trimix_lm_eval.harness.check import check_run
from trimix_lm_eval.harness.lm import SequenceLM
from trimix_lm_eval.loading import recorded, settings
from trimix_lm_eval.loading.provenance import compared
from trimix_lm_eval.sequence_fusion.candidates import CandidateText, Event, likelihoods
from trimix_lm_eval.sweep import look, sweep
from trimix_lm_eval.utils import errors
from trimix_lm_eval.utils.errors import TrimixError

POINT = Weights(0.3, 0.6)
STOP, NEW = ["ན", "\n"], 7
CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{context}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{label}}",
    "metric_list": [{"metric": "acc"}],
}
FREE = {
    "output_type": "generate_until",
    "doc_to_text": "{{context}}",
    "doc_to_target": "{{reference}}",
    "generation_kwargs": {"until": STOP, "max_gen_toks": NEW},
    "metric_list": [{"metric": "exact_match"}],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write(tmp_path_factory.mktemp("own-tokenizers"))


@pytest.fixture(scope="module")
def alone(folders):
    return {role: Alone(folder) for role, folder in folders.items()}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    questions = [{**row, "context": row["context"][-60:]} for row in rows("finish")[:4]]
    texts = [{**row, "context": row["context"][-50:]} for row in rows("rolling")[:5]]
    for name, fields, docs in (("choice", CHOICE, questions), ("free", FREE, texts)):
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(doc) + "\n" for doc in docs), encoding="utf-8")
        files = {"data_files": {"test": str(data)}}
        task = {"task": name, "dataset_path": "json", "dataset_kwargs": files, **fields}
        text = yaml.safe_dump({**task, "test_split": "test"}, allow_unicode=True)
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder


def load(folders, *points, **more):
    variants = [
        settings.parse(
            {
                **{role: folders[role] for role in TRIO},
                "policy": "fixed",
                "fusion": "sequence",
                **point._asdict(),
                **more,
            }
        )
        for point in points
    ]
    return SequenceFusion.load_many(variants, "cpu")


def best(alone, text, stop, point):
    """The candidate that wins, by the reference: text and source."""
    weights = {name: w for name, w in point.by_source().items() if w}
    ranked = []
    for name in weights:
        if weights[name] > 0:
            made, cut = alone[name].greedy(text, stop, NEW)
            score = sum(w * alone[n].event(text, made, cut, stop) for n, w in weights.items())
            scored = made.rstrip("\ufffd") if cut else made
            score = score if scored or not cut else -math.inf
            ranked.append(((not cut, score / (len(scored.encode()) + 1)), made, name))
    return max(ranked, key=lambda one: one[0])


def test_two_tokenizers_end_to_end(folders, alone, tasks, tmp_path):
    log = tmp_path / "weights.jsonl"
    asked = model_args(
        folders, policy="fixed", alpha=0.3, beta=0.6, fusion="sequence", weights_log=str(log)
    )
    found = evaluate("trimix", tasks, ["choice", "free"], model_args={**asked, "batch_size": 3})
    weights = {name: w for name, w in POINT.by_source().items() if w}
    for got, sample in zip(answers(found, "choice"), found["samples"]["choice"], strict=True):
        doc = sample["doc"]
        for (value, greedy), option in zip(got, doc["choices"], strict=True):
            scores = {
                name: one.score(*one.split(doc["context"], " " + option))
                for name, one in alone.items()
            }
            naive = sum(weights[name] * score for name, (score, _) in scores.items())
            assert value == pytest.approx(naive, rel=1e-6)
            assert greedy == all(is_greedy for _, is_greedy in scores.values())
    winners = []
    # lm-eval's own stop string is the text of the large model's end of text.
    stop = [*STOP, alone["large_ins"].tokenizer.eos_token]
    for (got,), sample in zip(answers(found, "free"), found["samples"]["free"], strict=True):
        _, text, name = best(alone, sample["doc"]["context"], stop, POINT)
        assert got == text
        winners.append(name)
    told = json.loads(json.dumps(found["config"]["trimix"]))
    assert told["fusion"] == "sequence" and "no log-probabilities" in told["scores"]
    assert told["sequence"]["answers"] == {n: winners.count(n) for n in sorted(set(winners))}
    assert told["sequence"]["candidates"] == dict.fromkeys(sorted(TRIO), 5)
    assert set(told["sequence"]["scored_tokens"]) == set(TRIO)
    lengths = {name: source["max_length"] for name, source in told["sources"].items()}
    assert lengths == {"large_ins": 512, "small_cpt": 320, "small_base": 320}
    assert len({source["tokenizer"] for source in told["sources"].values()}) == 2
    assert told["weights_chosen"] == {"choice": {"0.3:0.6": 4}, "free": {"0.3:0.6": 5}}
    assert sum(told["finish_reasons"]["free"].values()) == 5
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 4 * 4 + 5 and {line["alpha"] for line in lines} == {0.3}


def test_a_sweep_runs_each_source_once(folders, tasks, tmp_path, monkeypatch):
    make_lm_eval_quick(monkeypatch)
    points = {"grid": ["0.3:0.6", "0.4:0.5", "0.2:0.5"]}
    asked = config(folders, tasks, tmp_path / "out", tasks=["choice"], sweep=points)
    asked["model_args"] |= {"fusion": "sequence", "candidates": 1, "batch_size": 8}
    told = "\n".join(look(asked))
    assert "estimate: none" in told and "small_cpt: a context of 320 tokens" in told
    with passes(monkeypatch) as swept:
        paths = sweep(asked)
    runs, problems = results.read(paths)
    assert not problems and len(runs) == 3
    assert {run.circumstances for run in runs} == {"fusion sequence, candidates 1"}
    model = load(folders, *map(at, points["grid"]), batch_size=8)
    for which, path in enumerate(paths):
        samples = written(path)["samples"]["choice"]
        pairs = [(s["doc"]["context"], " " + one) for s in samples for one in s["doc"]["choices"]]
        with passes(monkeypatch) as single:
            scores = by_index(model.part([which]).iter_loglikelihood(pairs))
        assert single == swept
        values = [float(value) for sample in samples for ((value, _),) in sample["resps"]]
        assert values == [scores[i].log_likelihood for i in range(len(pairs))]
    with pytest.raises(TrimixError, match="other results than are asked for: candidates"):
        sweep({**asked, "model_args": {**asked["model_args"], "candidates": 2}})


@contextmanager
def passes(monkeypatch):
    """Counts the forward passes of each source; those that try it out at loading are left out."""
    counted: Counter[str] = Counter()
    run = InputBatch.run

    def spy(self, which, *args, **kwargs):
        counted[self.ensemble.names[which]] += 1
        return run(self, which, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(InputBatch, "run", spy)
        yield counted


# ---------------------------------------------------------------- against token fusion


def test_corners_are_what_the_source_gives_by_itself(pico):
    folders = {role: pico()[role] for role in TRIO}
    corners = {"large_ins": "1:0", "small_cpt": "0:1", "small_base": "0:0"}
    model = load(folders, *map(at, corners.values()))
    pairs = [(f"{context} ", text) for context in ("the hen", "rivers") for text in ("in", "འ")]
    scores = list(model.iter_loglikelihood(pairs))
    prompts = [("the hen", SamplingParams(9, ("e",))), ("in", SamplingParams(9, temperature=0.9))]
    texts = list(model.iter_generate(prompts))
    for which, role in enumerate(corners):
        single = TriMix.from_pretrained(**folders, policy=role)
        expected = by_index(single.iter_loglikelihood(pairs))
        assert {i: one for i, w, one in scores if w == which} == expected
        expected = by_index(single.iter_generate(prompts))
        assert {i: one for i, w, one in texts if w == which} == expected


def test_equal_sources_have_their_own_score(pico):
    same = dict.fromkeys(TRIO, pico()["large_ins"])
    pairs = [("the hen", " there"), ("rivers", "")]
    scores = by_index(load(same, Weights(0.3, 0.7)).iter_loglikelihood(pairs))
    single = TriMix.from_pretrained(**same, policy="large_ins").loglikelihood(pairs)
    for i, one in enumerate(single):
        assert scores[i].log_likelihood == pytest.approx(one.log_likelihood, rel=1e-12)
        assert scores[i].is_greedy == one.is_greedy


def test_on_one_tokenizer_most_questions_are_answered_as_by_token_fusion():
    docs = rows("finish")[::13]
    pairs = [(doc["context"][-120:], " " + one) for doc in docs for one in doc["choices"]]
    questions = [i // 4 for i in range(len(pairs))]
    kept, chosen = {}, {}
    for fusion, cls in (("token", TriMix), ("sequence", SequenceFusion)):
        variants = [
            settings.parse({"pretrained": "demo", "policy": "fixed", "fusion": fusion, **point})
            for point in ({"alpha": 0.1, "beta": 0.9}, {"alpha": 0.5, "beta": 0.5})
        ]
        found = cls.load_many(variants, "cpu", kept).iter_loglikelihood(pairs, None, questions)
        scores = {(which, i): one.log_likelihood for i, which, one in found}
        chosen[fusion] = [
            max(range(4), key=lambda k, d=d, w=w: scores[w, 4 * d + k])
            for w in range(2)
            for d in range(len(docs))
        ]
    same = [a == b for a, b in zip(chosen["token"], chosen["sequence"], strict=True)]
    assert sum(same) >= 0.95 * len(same), f"{sum(same)} of {len(same)}"


# ---------------------------------------------------------------- texts


def test_texts_are_the_same_at_any_batch_and_beside_other_points(folders):
    points = [Weights(0.3, 0.6), Weights(0.5, 0.5), Weights(1.0, 0.0)]
    texts = [row["context"][-30:] for row in rows("rolling")[:4]]
    prompts = [(text, SamplingParams(6, ("ན",), seed=i)) for i, text in enumerate(texts)]
    many = load(folders, *points, candidates=2, batch_size=5)
    together = list(many.iter_generate(prompts))
    for which in range(len(points)):
        single = load(folders, points[which], candidates=2, batch_size=1)
        alone = by_index(single.iter_generate(prompts))
        assert {i: one for i, w, one in together if w == which} == alone
        costs = single.costs()
        wrote = {name for what, name in costs if what == "candidates"}
        assert {costs["candidates", name] for name in wrote} == {4 * 3}
        assert sum(n for (what, _), n in costs.items() if what == "answers") == 4
    assert {name for what, name in many.costs(2) if what == "answers"} == {"large_ins"}


@pytest.mark.parametrize("role", TRIO)
def test_how_likely_a_text_is_counts_every_way_to_end_it(folders, alone, role):
    member = load(folders, Weights(0.3, 0.6)).members[role]
    contexts = ["རྒྱལ་པོ ", "རྒྱལ་པོ"]
    stop = [*STOP, alone[role].tokenizer.eos_token]
    events = [
        CandidateText(text, reason, role).event
        for text in ("", "བདེ", "བདེ་བ \ufffd")
        for reason in ("eos", "length")
    ]
    prompts = [(context, SamplingParams(stop=tuple(stop))) for context in contexts]
    found, tokens = likelihoods(member, prompts, [events] * len(prompts))
    for context, scores in zip(contexts, found, strict=True):
        naive = [alone[role].event(context, *event, stop) for event in events]
        assert [scores[event] for event in events] == pytest.approx(naive, rel=1e-5, abs=1e-9)
    assert tokens > 0


def test_a_short_text_does_not_win_by_its_length():
    long = CandidateText("a whole sentence", "eos", "large_ins")
    assert long.rank(-9.0) > CandidateText("a", "stop", "small_cpt").rank(-1.5)
    assert long.rank(-9.0) > CandidateText("", "eos", "small_cpt").rank(-0.7)
    assert long.rank(-9.0) < CandidateText("a likelier text", "eos", "small_cpt").rank(-8.0)
    cut, shorter = (
        CandidateText("cut in mid", "length", "large_ins"),
        CandidateText("c", "length", ""),
    )
    assert cut.rank(-9.0) > shorter.rank(-2.0)
    assert long.rank(-50.0) > cut.rank(-0.1), "circles are likely"


def test_what_is_left_of_a_cut_character_counts_for_nothing():
    """A score is per byte of what was scored, and of nothing there is no score."""
    whole = CandidateText("འའ", "length", "large_ins")
    rest = CandidateText("འའ\ufffd\ufffd", "length", "small_cpt")
    nothing = CandidateText("\ufffd\ufffd", "length", "small_base")
    assert rest.event == whole.event and rest.rank(-6.0) == whole.rank(-6.0)
    assert nothing.rank(0.0) < whole.rank(-60.0)
    ended = CandidateText("\ufffd", "eos", "large_ins")
    assert ended.event == Event("\ufffd", False) and ended.rank(-9.0) > whole.rank(-1.0)


def test_equal_texts_are_scored_once_and_a_cut_one_apart():
    ended = [CandidateText("a", "eos", "large_ins"), CandidateText("a", "stop", "small_cpt")]
    assert len({one.event for one in ended}) == 1
    assert CandidateText("a", "length", "small_cpt").event not in {one.event for one in ended}


def test_a_chat_s_bos_is_left_to_each_source(folders):
    model = load(folders, Weights(0.5, 0.5))
    bare = model.loglikelihood([("རྒྱལ", " པོ")])
    chat = model.loglikelihood([("<s>རྒྱལ", " པོ")])
    small = model.members["small_cpt"]
    own = small.loglikelihood([("རྒྱལ", " པོ")])[0].log_likelihood
    large = model.members["large_ins"].loglikelihood([("<s>རྒྱལ", " པོ")])[0].log_likelihood
    assert chat[0].log_likelihood == pytest.approx(0.5 * own + 0.5 * large)
    assert bare[0].log_likelihood != chat[0].log_likelihood


def test_a_context_that_is_long_for_one_source_is_counted(folders):
    model = load(folders, Weights(0.5, 0.5))
    words = " ".join(row["context"] for row in rows("rolling")[:1])[:250]
    assert not model.members["small_cpt"].cuts_pair(words, " པོ")
    assert model.cuts_pair(words, " པོ") and not model.cuts_pair(words[:90], " པོ")
    assert model.cuts_prompt(words, SamplingParams(9))


@pytest.mark.parametrize("kind", ["loglikelihood", "generate_until"])
def test_contexts_that_are_cut_are_warned_of(folders, kind, caplog, monkeypatch):
    monkeypatch.setattr(errors, "_warned", set())
    caplog.set_level(logging.WARNING, logger="trimix_lm_eval")
    lm = SequenceLM(**model_args(folders, policy="fixed", alpha=0.5, beta=0.5, fusion="sequence"))
    long = " ".join(row["context"] for row in rows("rolling")[:9])
    with_it = {"loglikelihood": " པོ", "generate_until": {"until": ["།"], "max_gen_toks": 4}}
    assert len(getattr(lm, kind)(instances(kind, [(long, with_it[kind])]))) == 1
    assert "1 request(s) longer than the context length of one of the sources" in caplog.text
    assert "1 request(s) longer than the context length of small_cpt of 320 tokens" in caplog.text


def test_a_context_without_room_is_that_of_a_source(folders):
    model = load(folders, Weights(0.5, 0.5))
    with pytest.raises(TrimixError, match=r"^small_cpt: 400 new tokens leave no room.* is 320"):
        model.generate(["རྒྱལ"], max_new_tokens=400)


def test_token_ids_are_those_of_a_source(folders):
    model, params = load(folders, Weights(0.5, 0.5)), SamplingParams(4)
    with pytest.raises(TrimixError, match="no token ids that all sources share"):
        model.request("རྒྱལ", params)
    assert model.members["large_ins"].request("རྒྱལ", params).prompt.ids


def test_a_point_for_a_task_is_the_point(folders):
    model = load(folders, Weights(0.5, 0.5))
    assert model.choose_for_task(["རྒྱལ"]).weights == Weights(0.5, 0.5)


# ---------------------------------------------------------------- what is refused, and by whom


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"policy": "ppl"}, "policy=ppl is not for fusion=sequence.*tokens"),
        ({}, "policy=ppl is not for fusion=sequence"),
        ({"policy": "ent"}, "policy=ent is not"),
        ({"policy": "gate"}, "policy=gate is not.*distributions"),
        ({"policy": "packllm"}, "policy=packllm is not"),
        ({"policy": "mixture"}, "policy=mixture is not"),
        ({"policy": "contrastive"}, "policy=contrastive is not.*mask"),
        ({"policy": "fixed", "plausibility": 0.1}, "plausibility= is not for"),
        ({"policy": "fixed", "tokenizer": "demo"}, "tokenizer= is not for.*its own tokenizer"),
        ({"policy": "fixed", "prefix_token_id": 3}, "prefix_token_id= is not for"),
        ({"policy": "fixed", "think_end_token": "x"}, "think_end_token= is not for"),
    ],
)
def test_what_needs_one_distribution_is_refused_before_loading(arguments, message):
    trio = dict.fromkeys(TRIO, "nowhere")
    with pytest.raises(TrimixError, match=message):
        SequenceFusion.from_settings(settings.parse({**trio, "fusion": "sequence", **arguments}))


@pytest.mark.parametrize("role", SOURCES)
def test_a_source_by_itself_has_all_the_weight(role):
    asked = settings.parse({**dict.fromkeys(SOURCES, "somewhere"), "fusion": "sequence"})
    point = asked.alone(role).fusion_config().policy.points()[0]
    assert {name: w for name, w in point.by_source().items() if w} == {role: 1.0}


def test_a_check_refuses_whole_texts_of_tasks_that_are_known(tmp_path):
    run = {"model": "trimix", "tasks": ["trimix_demo"]}
    run["model_args"] = {"pretrained": "demo", "policy": "fixed", "fusion": "sequence"}
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(run), encoding="utf-8")
    with pytest.raises(TrimixError, match="no perplexity"):
        check_run(str(file))


def test_candidates_are_of_sequences_only():
    with pytest.raises(TrimixError, match="fusion=sequence only"):
        settings.parse({"pretrained": "demo", "candidates": 2})


def test_each_class_names_the_other():
    with pytest.raises(TrimixError, match="trimix_lm_eval.SequenceFusion"):
        TriMix.from_pretrained("demo", fusion="sequence", policy="fixed")
    with pytest.raises(TrimixError, match="trimix_lm_eval.TriMix"):
        SequenceFusion.from_pretrained("demo", fusion="token")


def test_whole_texts_are_refused(folders, tasks, tmp_path, monkeypatch):
    lm = SequenceLM(**model_args(folders, policy="large_ins", fusion="sequence"))
    with pytest.raises(TrimixError, match=r"no perplexity[\s\S]*=<its path>,policy=large_ins"):
        lm.loglikelihood_rolling(instances("loglikelihood_rolling", [("a text",)]))
    make_lm_eval_quick(monkeypatch)
    whole = config(folders, write_tasks(tmp_path / "t", ["rolling"]), tmp_path / "out")
    whole |= {"tasks": ["rolling"], "sweep": {"grid": ["1:0", "0:1"]}}
    whole["model_args"]["fusion"] = "sequence"
    monkeypatch.setattr(SequenceFusion, "load_many", pytest.fail)
    with pytest.raises(TrimixError, match="no perplexity"):
        sweep(whole)


def test_answers_of_one_fusion_are_not_taken_for_the_other_s(pico):
    folders = {role: pico()[role] for role in TRIO}
    token = TriMix.from_pretrained(**folders, policy="fixed").describe()
    told = [
        SequenceFusion.from_pretrained(**folders, policy="fixed", candidates=n).describe()
        for n in (0, 1)
    ]
    differing = " ".join(compared(token, told[0]))
    assert "fusion (None against sequence)" in differing
    assert [one for one in compared(*told)] == ["candidates (0 against 1)"]


def test_a_check_says_what_each_source_reads(folders, tmp_path):
    arguments = flat(model_args(folders, policy="fixed", fusion="sequence"))
    told = "\n".join(check_run(None, arguments, load=True))
    assert "large_ins: a context of 512 tokens, and 265 token ids of its own" in told
    assert "small_cpt: a context of 320 tokens" in told
    assert "LlamaForCausalLM" in told


def test_explain_says_that_there_is_nothing_to_show(folders, capsys):
    logged = {"pretrained": "demo", "policy": "fixed", "fusion": "sequence", "candidates": 1}
    assert recorded.read(logged, "results.json").arguments == logged
    arguments = flat(model_args(folders, policy="fixed", fusion="sequence"))
    assert main(["explain", "--model_args", arguments, "--prompt", "x"]) == 1
    assert "no distribution over the next token" in capsys.readouterr().err


def at(label):
    return Weights(*map(float, label.split(":")))
