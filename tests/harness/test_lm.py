"""`TriMixLM` as lm-eval sees it: results, sidecar files, prompts, arguments."""

from __future__ import annotations

import json
import logging
import shutil

import pytest
from transformers import AutoTokenizer

from tests.support.naive import Naive
from tests.support.running import TRIO, answers, evaluate, flat, instances, model_args, program
from trimix_lm_eval import TriMix
from trimix_lm_eval.fusion.weights import PAPER_GRID
from trimix_lm_eval.harness.lm import TriMixLM
from trimix_lm_eval.utils import errors
from trimix_lm_eval.utils.errors import TrimixError

WORDS = ["the hen", "in the barn", "rivers", "སྐད་ཡིག", "x", "over there", "a rainy inn"]
DOCS = [
    {"q": f"{word}, number {i},", "choices": [" the end", f" {word[::-1]}", " no"], "a": i % 3}
    for i, word in enumerate(WORDS)
]
CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{q}}",
    "doc_to_choice": "choices",
    "doc_to_target": "a",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc"}],
}
FREE = {
    "output_type": "generate_until",
    "doc_to_text": "{{q}}",
    "doc_to_target": "{{a}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6},
    "metric_list": [{"metric": "bypass"}],
}
ROLLING = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{q}}",
    "metric_list": [{"metric": "bits_per_byte"}],
}
#: Fine and narrow, so that random models choose differently for different prompts.
GRID = [(a / 10, b / 10) for a in range(2, 8) for b in range(2, 8)]
GRID_TEXT = ";".join(f"{a}:{b}" for a, b in GRID)
QUICK = """
import runpy, sys
from lm_eval.tasks import TaskManager

init = TaskManager.__init__

def quick(self, *args, **kwargs):
    init(self, *args, **{**kwargs, "include_defaults": False})

TaskManager.__init__ = quick
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def folders(pico):
    return pico("llama")


@pytest.fixture(scope="module")
def naive(folders):
    return Naive({role: folders[role] for role in TRIO}, 265)


@pytest.fixture
def told(caplog):
    """Our warnings; each is given once per process, so the memory of that is cleared."""
    errors._warned.clear()
    caplog.set_level(logging.WARNING, logger="trimix_lm_eval")
    return lambda: [r.getMessage() for r in caplog.records if r.name == "trimix_lm_eval"]


def mean_nll(naive, ids):
    """[P]: mean NLL of a prompt under every point of GRID."""
    return naive.grid(ids, 1, GRID).mean(dim=1)


def label(point):
    return f"{point[0]:g}:{point[1]:g}"


# ---------------------------------------------------------------- results and sidecar files


def test_model_info_says_what_the_numbers_were_made_from(folders, naive, task_yaml, tmp_path):
    task_yaml("choice", DOCS, **CHOICE)
    task_yaml("rolling", DOCS[:3], **ROLLING)
    tasks = task_yaml("free", DOCS[:5], **FREE)
    log = tmp_path / "deep" / "weights.jsonl"
    arguments = model_args(folders, batch_size=3, grid=GRID_TEXT, weights_log=str(log))
    results = evaluate("trimix", tasks, ["choice", "rolling", "free"], model_args=arguments)
    config = json.loads(json.dumps(results["config"], default=None))
    info = config["trimix"]
    assert set(info["sources"]) == set(TRIO)
    digests = {info["sources"][role]["digest"] for role in TRIO}
    assert len(digests) == 3 and all(len(digest) == 16 for digest in digests)
    for role in TRIO:
        assert info["sources"][role]["path"] == folders[role]
        assert info["sources"][role]["dtype"] == "float32"
    assert info["policy"]["name"] == "ppl" and info["policy"]["refine"] is None
    assert [tuple(point[:2]) for point in info["policy"]["grid"]] == GRID
    assert config["model_num_parameters"] == sum(m.num_parameters() for m in naive.models.values())
    assert config["model_dtype"] == "torch.float32"
    assert info["max_length"] == 96 and info["truncated_requests"] == 0

    # Every document counts once, whatever its number of options.
    chosen = info["weights_chosen"]
    assert {task: sum(c.values()) for task, c in chosen.items()} == {
        "choice": 7,
        "rolling": 3,
        "free": 5,
    }
    encode = TriMix.from_pretrained(folders["small_cpt"], policy="large_ins").codec.encode
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 7 * 3 + 3 + 5
    expected = {}
    for doc, row in enumerate(DOCS):
        nll = mean_nll(naive, encode(row["q"]))
        expected[doc] = (label(GRID[int(nll.argmin())]), float(nll.min()), len(encode(row["q"])))
    counts: dict[str, int] = {}
    for name, _, _ in expected.values():
        counts[name] = counts.get(name, 0) + 1
    assert chosen["choice"] == counts
    assert len(counts) > 1, "all prompts choose alike: this proves nothing"
    seen = set()
    for line in lines:
        seen.add((line["task"], line["doc_id"], line["idx"]))
        assert line["gamma"] == line["alpha"]
        if line["task"] == "rolling":
            continue
        point, nll, tokens = expected[line["doc_id"]]
        assert label((line["alpha"], line["beta"])) == point
        assert line["prompt_nll"] == pytest.approx(nll, abs=1e-5)
        assert line["prompt_tokens"] == tokens - 1
        assert line["request"] in ("loglikelihood", "generate_until")
    assert len(seen) == len(lines)


def test_gate_logs_the_weights_of_generated_tokens_too(folders, task_yaml, tmp_path):
    task_yaml("choice", DOCS, **CHOICE)
    tasks = task_yaml("free", DOCS[:5], **FREE)
    log = tmp_path / "weights.jsonl"
    arguments = {**model_args(folders, policy="gate"), "weights_log": str(log)}
    results = evaluate("trimix", tasks, ["choice", "free"], model_args=arguments)
    chosen = results["config"]["trimix"]["weights_chosen"]
    assert sum(chosen["choice"].values()) == 7
    assert sum(chosen["free"].values()) == 5
    for line in log.read_text(encoding="utf-8").splitlines():
        point = json.loads(line)
        assert point["alpha"] + point["beta"] == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("policy", ["fixed", "proxy_tuning"])
def test_fixed_weights_are_in_the_histogram(folders, task_yaml, policy):
    tasks = task_yaml("choice", DOCS, **CHOICE)
    results = evaluate("trimix", tasks, ["choice"], model_args=model_args(folders, policy=policy))
    point = "0.1:0.9" if policy == "fixed" else "1:1"
    assert results["config"]["trimix"]["weights_chosen"] == {"choice": {point: 7}}


def test_options_of_a_question_share_its_weights(folders, naive, tmp_path):
    """Also when one of them is so long that the context has to be cut for it."""
    log = tmp_path / "log.jsonl"
    arguments = model_args(folders, batch_size=2, grid=GRID_TEXT, weights_log=str(log))
    lm = TriMixLM(**arguments)
    context = "rivers in the barn over there, and the hen " * 2
    options = [" a", " the other one", " word" * 9]
    asked = instances("loglikelihood", [(context, option) for option in options])
    for idx, request in enumerate(asked):
        request.doc_id, request.idx = 0, idx
    got = lm.loglikelihood(asked, disable_tqdm=True)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len({(line["alpha"], line["beta"]) for line in lines}) == 1
    assert sum(lm.get_model_info()["trimix"]["weights_chosen"]["t"].values()) == 1
    prompt = lm.tok_encode(context.rstrip())
    point = GRID[int(mean_nll(naive, prompt).argmin())]
    for option, (found, _) in zip(options, got, strict=True):
        ids = lm.tok_encode(context + option)
        fed = ids[-97:]
        start = len(fed) - (len(ids) - len(prompt))
        want = -float(naive.nll(naive.fused(fed[:-1], *point), fed, start).sum())
        assert found == pytest.approx(want, abs=1e-5)


def test_batch_size_auto(folders, task_yaml):
    tasks = task_yaml("choice", DOCS, **CHOICE)
    args = model_args(folders)
    want = evaluate("trimix", tasks, ["choice"], model_args=args, batch_size=1)
    for batch_size in ("auto", "auto:4"):
        got = evaluate("trimix", tasks, ["choice"], model_args=args, batch_size=batch_size)
        for x, y in zip(answers(got, "choice"), answers(want, "choice"), strict=True):
            assert [a[0] for a in x] == pytest.approx([b[0] for b in y], abs=1e-5)


# ---------------------------------------------------------------- one point per task


def requests_of(rows, task="t"):
    return instances("loglikelihood", [(row["q"], row["choices"][0]) for row in rows], task)


def test_task_point_is_the_naive_mean_whatever_the_order(folders, naive):
    points = set()
    for order in (1, -1):
        lm = TriMixLM(**model_args(folders, policy="ppl_task", grid=GRID_TEXT, batch_size=3))
        lm.loglikelihood(requests_of(DOCS)[::order], disable_tqdm=True)
        points.add(lm.task_points["t"].weights)
    assert len(points) == 1
    mean = sum(mean_nll(naive, lm.tok_encode(row["q"])) for row in DOCS) / len(DOCS)
    assert tuple(points.pop())[:2] == GRID[int(mean.argmin())]
    info = lm.get_model_info()["trimix"]
    assert list(info["task_points"]) == ["t"]
    assert info["weights_chosen"]["t"] == {info["task_points"]["t"]: len(DOCS)}


def test_task_point_reads_fifty_seeded_prompts(folders, monkeypatch):
    rows = [{"q": f"{WORDS[i % 7]} {i} {'and' * (i % 5)}", "choices": [" x"]} for i in range(120)]
    read = []
    choose = TriMix.choose_for_task

    def spy(self, contexts, **more):
        read.append(sorted(contexts))
        return choose(self, contexts, **more)

    monkeypatch.setattr(TriMix, "choose_for_task", spy)
    for order, seed in ((1, 1234), (-1, 1234), (1, 5)):
        lm = TriMixLM(**model_args(folders, policy="ppl_task", batch_size=16, seed=seed))
        lm.loglikelihood(requests_of(rows)[::order], disable_tqdm=True)
    assert [len(set(contexts)) for contexts in read] == [50, 50, 50]
    assert read[0] == read[1] != read[2]
    lm = TriMixLM(**model_args(folders, policy="ppl_task", batch_size=16, prompts=7))
    lm.loglikelihood(requests_of(rows), disable_tqdm=True)
    assert len(read[-1]) == 7 and set(read[-1]) <= set(read[0])


def test_each_task_has_its_point(folders, naive):
    lm = TriMixLM(**model_args(folders, policy="ppl_task", grid=GRID_TEXT))
    lm.loglikelihood([*requests_of(DOCS[:1], "a"), *requests_of(DOCS[3:4], "b")], disable_tqdm=True)
    for task, row in (("a", DOCS[0]), ("b", DOCS[3])):
        nll = mean_nll(naive, lm.tok_encode(row["q"]))
        assert tuple(lm.task_points[task].weights)[:2] == GRID[int(nll.argmin())]


def test_task_point_looks_at_prompts_and_not_at_the_empty_one(folders, task_yaml, naive):
    """With acc_mutual_info every option comes a second time, without its context."""
    metrics = [{"metric": "acc"}, {"metric": "acc_mutual_info"}]
    tasks = task_yaml("mutual", DOCS, **{**CHOICE, "metric_list": metrics})
    arguments = model_args(folders, policy="ppl_task", grid=GRID_TEXT)
    results = evaluate("trimix", tasks, ["mutual"], model_args=arguments)
    lm = TriMixLM(**arguments)
    mean = sum(mean_nll(naive, lm.tok_encode(row["q"])) for row in DOCS) / len(DOCS)
    point = GRID[int(mean.argmin())]
    assert results["config"]["trimix"]["task_points"] == {"mutual": label(point)}


def test_task_point_does_not_depend_on_the_order_of_options(folders, monkeypatch):
    """Tasks whose options differ in the context (as Winogrande): any order, the same prompts."""
    read = []
    choose = TriMix.choose_for_task

    def spy(self, contexts, **more):
        read.append(sorted(contexts))
        return choose(self, contexts, **more)

    monkeypatch.setattr(TriMix, "choose_for_task", spy)
    for order in (1, -1):
        lm = TriMixLM(**model_args(folders, policy="ppl_task", grid=GRID_TEXT))
        asked = []
        for doc in range(4):
            for idx in (0, 1):
                (request,) = requests_of([DOCS[(3 * doc + 4 * idx) % 7]])
                request.doc_id, request.idx = doc, idx
                asked.append(request)
        lm.loglikelihood(asked[::order], disable_tqdm=True)
    assert read[0] == read[1]


def test_answers_policy_falls_back_once(folders, told):
    lm = TriMixLM(**model_args(folders, policy="ppl_answer", grid=GRID_TEXT))
    plain = TriMixLM(**model_args(folders, policy="ppl", grid=GRID_TEXT))
    asked = requests_of(DOCS)
    got = lm.loglikelihood(asked, disable_tqdm=True)
    lm.loglikelihood(asked, disable_tqdm=True)
    assert [m for m in told() if "ppl_answer" in m] and len(told()) == 1
    assert got == plain.loglikelihood(asked, disable_tqdm=True)


def test_answers_policy_judges_the_answers_alone(folders, naive, told):
    lm = TriMixLM(**model_args(folders, policy="ppl_answer", grid=GRID_TEXT))
    context = "Q: one\nAnswer: the hen\n\nQ: two\nAnswer: in rain\n\nQ: three\nAnswer:"
    (got,) = lm.loglikelihood(instances("loglikelihood", [(context, " x")]), disable_tqdm=True)
    ids = lm.tok_encode(context)
    spans = lm.tokenizer(context, return_offsets_mapping=True)["offset_mapping"]
    where = [(context.index(" the hen"), 8), (context.index(" in rain"), 8)]
    scored = [
        t
        for t, (start, end) in enumerate(spans)
        if any(start < at + n and end > at for at, n in where)
    ]
    nll = naive.grid(ids, 1, GRID)[:, [t - 1 for t in scored]].mean(dim=1)
    point = GRID[int(nll.argmin())]
    whole = lm.tok_encode(context + " x")
    want = -float(naive.nll(naive.fused(whole, *point), whole, len(ids)).sum())
    assert got[0] == pytest.approx(want, abs=1e-5)
    assert told() == []


# ---------------------------------------------------------------- prompts

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def templated(folders, root, template):
    made = {}
    for role in TRIO:
        made[role] = str(root / role)
        shutil.copytree(folders[role], made[role])
        tokenizer = AutoTokenizer.from_pretrained(made[role])
        tokenizer.chat_template = template
        tokenizer.save_pretrained(made[role])
    return made


def test_chat_template_system_instruction_and_turns(folders, task_yaml, tmp_path):
    chat = templated(folders, tmp_path / "models", TEMPLATE)
    fewshot = {
        "num_fewshot": 2,
        "fewshot_split": "test",
        "fewshot_config": {"sampler": "first_n"},
        "doc_to_target": "{{choices[a]}}",
    }
    tasks = task_yaml("free", DOCS, **{**FREE, **fewshot})
    results = evaluate(
        "trimix",
        tasks,
        ["free"],
        model_args=model_args(chat),
        apply_chat_template=True,
        system_instruction="Be brief.",
        fewshot_as_multiturn=True,
    )
    prompts = [sample["arguments"][0][0] for sample in results["samples"]["free"]]
    for prompt in prompts:
        assert prompt.startswith("<s>[system]Be brief.")
        assert prompt.endswith("[assistant]")
        assert prompt.count("[user]") == 3 and prompt.count("[assistant]") == 3
    lm = TriMixLM(**model_args(chat))
    # The template brings its own BOS: no second one, whatever else is in the batch.
    assert lm.tok_encode(prompts[0]).count(256) == 1
    got = lm.generate_until(
        instances("generate_until", [(prompts[0], {"until": ["\n"], "max_gen_toks": 6})]), True
    )
    assert got == answers(results, "free")[0]
    assert results["config"]["trimix"]["weights_chosen"]["free"]


def test_a_template_without_a_system_role_gets_the_chat_without_it(folders, tmp_path, told):
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    chat = templated(folders, tmp_path / "models", template + TEMPLATE)
    lm = TriMixLM(**model_args(chat))
    history = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    for _ in range(2):
        assert lm.apply_chat_template(history) == "<s>[user]Hi\n[assistant]"
    assert len(told()) == 1 and "system" in told()[0]


def test_thinking_is_cut_and_the_template_is_told(folders, tmp_path):
    template = TEMPLATE + "{% if enable_thinking is defined %}{{ enable_thinking }}{% endif %}"
    chat = templated(folders, tmp_path / "models", template)
    history = [{"role": "user", "content": "Hi"}]
    lm = TriMixLM(**model_args(chat, enable_thinking=False))
    assert lm.apply_chat_template(history).endswith("[assistant]False")
    lm = TriMixLM(**model_args(chat, think_end_token="</think>"))
    assert lm.apply_chat_template(history).endswith("[assistant]")
    ids = lm.tok_encode("so long </think>  yes. no")
    assert lm.model.codec.completion(ids, ["."], (len("so long </think>"), 0)) == "yes"


def test_repeats_of_a_sample_differ_and_can_be_had_again(folders, task_yaml):
    sampled = {"max_gen_toks": 6, "do_sample": True, "temperature": 1.0}
    fields = {**FREE, "generation_kwargs": sampled, "repeats": 3}
    tasks = task_yaml("free", DOCS, **fields)
    runs = [
        evaluate("trimix", tasks, ["free"], model_args=model_args(folders, batch_size=b, **more))
        for b, more in ((1, {}), (4, {}), (4, {"seed": 99}))
    ]
    first, again, other = (answers(run, "free") for run in runs)
    assert all(len(draws) == 3 for draws in first)
    assert all(len(set(draws)) > 1 for draws in first)
    assert first == again != other


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"polcy": "ppl"}, "(?s)'polcy'.*Did you mean 'policy'.*accepted: .*small_cpt"),
        ({"policy": "pl"}, "(?s)'pl'.*accepted: .*fixed.*gate.*ppl_task"),
        ({"alpha": 0.5}, "alpha is an option of policy=fixed.*has policy=ppl"),
        ({"policy": "fixed", "alpha": "high"}, "alpha='high'"),
        ({"policy": "fixed", "alpha": float("nan")}, "alpha"),
        ({"dtype": "float8"}, "(?s)float8.*accepted: .*bfloat16"),
        ({"quantization": "int3"}, "(?s)int3.*accepted: int8, nf4"),
        ({"refine": "quadratc"}, "(?s)quadratc.*accepted: quadratic"),
        ({"optimum": "newton"}, "(?s)optimum is no option any more.*refine=quadratic"),
        ({"grid": "0.1;0.3"}, "grid="),
        ({"grid": "a:b"}, "grid="),
        ({"grid": ""}, "grid"),
        ({"grid": 7}, "grid"),
        ({"batch_size": "many"}, "batch_size"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": -2}, "batch_size"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"max_batch_size": "many", "batch_size": "auto"}, "max_batch_size"),
        ({"max_batch_size": 0, "batch_size": "auto"}, "max_batch_size"),
        ({"max_length": "long"}, "max_length"),
        ({"max_length": 1}, "max_length"),
        ({"plausibility": "high"}, "plausibility"),
        ({"plausibility": 1.5}, "plausibility"),
        ({"plausibility": 0.1, "plausibility_source": "large"}, "plausibility_source"),
        ({"prefix_token_id": "bos"}, "prefix_token_id"),
        ({"prefix_token_id": 100000, "max_length": 50}, "prefix_token_id"),
        ({"add_bos_token": "perhaps"}, "add_bos_token"),
        ({"policy": "ppl_task", "prompts": 0}, "prompts"),
        ({"policy": "ppl_task", "prompts": "all"}, "prompts"),
        ({"policy": "gate", "host": "large"}, "(?s)host.*accepted: .*large_ins"),
        ({"policy": "gate", "scorer": "large_ins"}, "host and scorer"),
        ({"small_device": "cuda:77"}, "cuda:77"),
        ({"trust_remote_code": "perhaps"}, "trust_remote_code"),
    ],
    ids=lambda value: None if isinstance(value, str) else ",".join(value),
)
def test_wrong_arguments_say_what_is_accepted(folders, wrong, says):
    with pytest.raises(TrimixError, match=says):
        lm = TriMixLM(**{**model_args(folders), **wrong})
        asked = [*requests_of(DOCS[:1]), *instances("loglikelihood", [("", "x")])]
        lm.loglikelihood(asked, disable_tqdm=True)


def test_the_arguments_of_the_model_win_over_flags_of_lm_eval(folders):
    """lm-eval's command line always has a device, cuda:0."""
    flags = {"device": "cuda:9", "batch_size": 1, "max_batch_size": None}
    asked = {**model_args(folders), "device": "cpu", "batch_size": 3}
    lm = TriMixLM.create_from_arg_obj(asked, flags)
    assert lm.model.fuser.ensemble.device.type == "cpu" and lm.model.batch_size == 3
    text = ",".join(f"{name}={value}" for name, value in asked.items())
    assert TriMixLM.create_from_arg_string(text, flags).model.batch_size == 3
    with pytest.raises(TrimixError, match="no device 'cuda:0' here"):
        TriMixLM.create_from_arg_obj({**asked, "device": "cuda:0"}, flags)


def test_a_policy_that_needs_a_missing_source(folders):
    with pytest.raises(TrimixError, match="(?s)small_base.*small_base=<Hub id or folder>"):
        TriMixLM(pretrained=folders["large_ins"], small_cpt=folders["small_cpt"], device="cpu")
    with pytest.raises(TrimixError, match="(?s)large_base.*large_base=<Hub id"):
        TriMixLM(**model_args(folders, policy="fixed", alpha=0.2, beta=0.9, gamma=0.5))
    with pytest.raises(TrimixError, match="pretrained"):
        TriMixLM(small_cpt=folders["small_cpt"])


def test_sources_without_weight_are_not_loaded(folders):
    for policy, loaded in (
        ("large_ins", ["large_ins"]),
        ("small_base", ["small_base"]),
        ("gate", ["large_ins", "small_cpt"]),
        ("fixed", ["large_ins", "small_cpt"]),  # (0.1, 0.9) leaves nothing for small_base
        ("ppl", ["large_ins", "small_cpt", "small_base"]),
    ):
        lm = TriMixLM(**model_args(folders, policy=policy))
        assert list(lm.model.fuser.ensemble.names) == loaded
        assert list(lm.get_model_info()["trimix"]["sources"]) == loaded
    assert len(PAPER_GRID) == 36


# ---------------------------------------------------------------- the command line


def command(tmp_path, module, *arguments):
    script = tmp_path / "quick.py"
    script.write_text(QUICK, encoding="utf-8")
    return program(str(script), module, *arguments, timeout=90)


def test_log_samples_through_the_stock_command(folders, task_yaml, tmp_path):
    task_yaml("choice", DOCS, **CHOICE)
    tasks = task_yaml("free", DOCS, **FREE)
    given = model_args(folders, policy="ppl", speculative=2)  # auto goes by the clock
    arguments = {k: v for k, v in given.items() if k != "device"}
    ran = command(
        tmp_path,
        "lm_eval",
        *("run", "--model", "trimix", "--model_args", flat(arguments)),
        *("--tasks", "choice,free", "--include_path", str(tasks), "--device", "cpu"),
        *("--batch_size", "2", "--log_samples", "--output_path", str(tmp_path / "out")),
        *("--gen_kwargs", "max_gen_toks=4"),
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    (file,) = (tmp_path / "out").rglob("results_*.json")
    assert "large_ins" in file.parent.name
    config = json.loads(file.read_text(encoding="utf-8"))["config"]
    want = evaluate(
        "trimix",
        tasks,
        ["choice", "free"],
        model_args=arguments,
        batch_size=2,
        gen_kwargs="max_gen_toks=4",
    )
    assert config["trimix"] == json.loads(json.dumps(want["config"]["trimix"]))
    for task in ("choice", "free"):
        (samples,) = (tmp_path / "out").rglob(f"samples_{task}_*.jsonl")
        lines = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
        assert len(lines) == len(DOCS)
        for line, expected in zip(lines, answers(want, task), strict=True):
            found = [answer for repeats in line["resps"] for answer in repeats]
            if task == "free":
                assert found == expected
            else:
                got = [float(x[0]) for x in found]
                assert got == pytest.approx([x[0] for x in expected], abs=1e-5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"policy": "pp"}, "Did you mean 'ppl'"),
        ({"small_cpt": "no/such/folder/here"}, "no/such/folder/here"),
    ],
)
def test_errors_of_the_stock_command_have_no_traceback(folders, task_yaml, tmp_path, change, says):
    tasks = task_yaml("choice", DOCS, **CHOICE)
    arguments = {k: v for k, v in model_args(folders).items() if k != "device"}
    ran = command(
        tmp_path,
        "lm_eval",
        *("run", "--model", "trimix", "--model_args", flat({**arguments, **change})),
        *("--tasks", "choice", "--include_path", str(tasks), "--device", "cpu"),
    )
    assert ran.returncode != 0
    assert "Traceback" not in ran.stderr, ran.stderr[-3000:]
    assert "error: " in ran.stderr and says in ran.stderr


def test_a_generation_error_of_the_stock_command_has_no_traceback(folders, task_yaml, tmp_path):
    tasks = task_yaml("free", DOCS, **FREE)
    arguments = {k: v for k, v in model_args(folders).items() if k != "device"}
    ran = command(
        tmp_path,
        "lm_eval",
        *("run", "--model", "trimix", "--model_args", flat(arguments), "--device", "cpu"),
        *("--tasks", "free", "--include_path", str(tasks), "--gen_kwargs", "num_beams=4"),
        *("--log_samples", "--output_path", str(tmp_path / "out")),
    )
    assert ran.returncode != 0
    assert "Traceback" not in ran.stderr, ran.stderr[-3000:]
    assert "num_beams=4" in ran.stderr


def test_a_request_that_fills_up_a_process_is_cut_once(folders):
    """lm-eval repeats the last request where a process has fewer documents than others."""
    lm = TriMixLM(**model_args(folders, batch_size=2))
    long = "The hen went to the barn. " * 9
    pairs = instances("loglikelihood", [("x", " y"), (long, " y")])
    lm.loglikelihood([*pairs, pairs[-1]], disable_tqdm=True)
    assert lm.tally().truncated == 1
    texts = instances("generate_until", [(long, {"until": [], "max_gen_toks": 2})])
    lm.generate_until([*texts, texts[-1]], disable_tqdm=True)
    assert lm.tally().truncated == 2
