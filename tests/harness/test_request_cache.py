"""``--cache_requests``: requests that another run made are refused, whatever they differ in."""

from __future__ import annotations

import json

import pytest
from lm_eval.api import task
from lm_eval.caching import cache
from lm_eval.tasks import TaskManager

from tests.support.running import answers, evaluate, model_args
from trimix_lm_eval.harness import request_cache
from trimix_lm_eval.harness.lm import TriMixLM
from trimix_lm_eval.utils.errors import TrimixError

DOCS = [
    {"q": f"{word}, number {i},", "a": str(i), "set": i % 2}
    for i, word in enumerate(["the hen", "in the barn", "rivers", "x", "zq", "over there"])
]
FREE = {
    "output_type": "generate_until",
    "doc_to_text": "{{q}}",
    "doc_to_target": "{{a}}",
    "fewshot_split": "test",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 3},
    "metric_list": [{"metric": "bypass"}],
}
#: Words for the functions of a task's own code.
CODE = """
def text(doc):
    return doc["q"] + "{}"

def load(data_dir="", **_):
    import json
    from datasets import Dataset
    rows = [json.loads(line) for line in open(data_dir)]
    return {{"test": Dataset.from_list(rows)}}
"""


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setattr(cache, "PATH", str(tmp_path / "requests"))
    request_cache.install()


def built(folder, metadata=None, seed=1234, **how):
    """Build the task's requests, as lm-eval's `evaluate` does."""
    manager = TaskManager(
        include_path=str(folder), include_defaults=False, metadata=metadata or {"a": 1}
    )
    (loaded,) = manager.load(["free"])["tasks"].values()
    loaded.set_config("generation_kwargs", how.pop("gen_kwargs", {}), update=True)
    loaded.set_config("num_fewshot", how.pop("num_fewshot", 1))
    loaded.set_fewshot_seed(seed)
    loaded.build_all_requests(**{"cache_requests": True, "limit": 3, **how})
    return [(one.doc_id, one.args, one.repeats) for one in loaded.instances]


def test_a_run_with_other_generation_arguments_is_refused(pico, task_yaml):
    """And one with the same gets what it would get without the cache."""
    lm = TriMixLM(**model_args(pico("llama"), policy="fixed", batch_size=8))
    folder = task_yaml("free", DOCS, **FREE)
    how = {"limit": 2, "gen_kwargs": {"max_gen_toks": 2}}
    want = evaluate(lm, folder, ["free"], **how)
    for _ in range(2):
        got = evaluate(lm, folder, ["free"], cache_requests=True, **how)
        assert answers(got, "free") == answers(want, "free")
    with pytest.raises(TrimixError, match="max_gen_toks=2 there, not 4"):
        how = {"limit": 2, "gen_kwargs": {"max_gen_toks": 4}}
        evaluate(lm, folder, ["free"], cache_requests=True, **how)


def test_any_limit_takes_of_the_same_requests(task_yaml):
    folder = task_yaml("free", DOCS, **FREE)
    want = built(folder, cache_requests=False, limit=None)
    for limit in (3, 2, None):
        assert built(folder, limit=limit) == want[:limit]
    assert len(want) == len(DOCS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gen_kwargs": {"max_gen_toks": 5}}, "max_gen_toks=3 there, not 5"),
        ({"gen_kwargs": {"temperature": 0.5}}, "temperature=None there, not 0.5"),
        ({"seed": 5}, "document 0, request 0 has '"),
        ({"limit": None, "samples": [1, 4]}, "of 6 documents, not 2"),
    ],
)
def test_another_setting_is_refused(task_yaml, change, words):
    folder = task_yaml("free", DOCS, **FREE)
    built(folder)
    load = task.load_from_cache
    with pytest.raises(TrimixError) as caught:
        built(folder, **change)
    assert words in str(caught.value)
    assert "requests of free" in str(caught.value)
    assert "--cache_requests refresh" in str(caught.value)
    assert task.load_from_cache is load
    fresh = built(folder, rewrite_requests_cache=True, **change)
    assert fresh == built(folder, **change) == built(folder, cache_requests=False, **change)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"doc_to_text": "Q: {{q}}"}, "there, not 'Q: "),
        ({"repeats": 2}, "repeats=1 there, not 2"),
        ({"description": "Go on: "}, "Go on: "),
        ({"generation_kwargs": {"until": ["."], "max_gen_toks": 3}}, "until=['\\n'] there"),
        ({"output_type": "loglikelihood_rolling"}, "request_type=generate_until there"),
    ],
)
def test_another_definition_is_refused(task_yaml, fields, words):
    built(task_yaml("free", DOCS, **FREE))
    with pytest.raises(TrimixError) as caught:
        built(task_yaml("free", DOCS, **{**FREE, **fields}))
    assert words in str(caught.value)


def test_other_data_or_code_is_refused(tmp_path):
    """The file that metadata name, what is in it, and the task's functions."""
    (tmp_path / "code17.py").write_text(CODE.format(" so"))
    folder = tmp_path / "free.yaml"
    lines = {
        "task": "free",
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_target": "{{a}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 3},
    }
    text = "custom_dataset: !function code17.load\ndoc_to_text: !function code17.text\n"
    folder.write_text(text + "".join(f"{k}: {json.dumps(v)}\n" for k, v in lines.items()))

    def write_and_build(rows, place="one"):
        file = tmp_path / f"{place}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        built(tmp_path, {"data_dir": str(file)}, limit=None, num_fewshot=0)

    write_and_build(DOCS)
    write_and_build(DOCS, "two")  # another place with the same content
    changed = [*DOCS[:3], {**DOCS[3], "q": "y, number 3,"}, *DOCS[4:]]
    with pytest.raises(TrimixError, match=r"document 3, request 0 has 'x, number 3, so' there"):
        write_and_build(changed)
    with pytest.raises(TrimixError, match="of 6 documents, not 5"):
        write_and_build(DOCS[:5], "three")
    (tmp_path / "code17.py").write_text(CODE.format(" then"))
    with pytest.raises(TrimixError, match="there, not 'the hen, number 0, then'"):
        write_and_build(DOCS)


def test_another_chat_template_is_refused(task_yaml):
    folder = task_yaml("free", DOCS, **FREE)
    how = {"apply_chat_template": True, "tokenizer_name": "one"}

    def template(mark):
        return lambda chat, **_: "".join(mark + message["content"] for message in chat)

    built(folder, chat_template=template("<a>"), **how)
    with pytest.raises(TrimixError, match="'<a>.* there, not '<b>"):
        built(folder, chat_template=template("<b>"), **how)


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("how", [{"limit": 2}, {"limit": None, "samples": [0, 3]}])
def test_fewer_documents_than_processes_are_told_to_all_of_them(tmp_path, task_yaml, rank, how):
    folder = task_yaml("free", DOCS, **FREE)
    with pytest.raises(TrimixError, match="free has 2 documents .* 3 processes.\n.*start 2 proc"):
        built(folder, rank=rank, world_size=3, cache_requests=False, **how)
    assert built(folder, rank=rank, world_size=3, cache_requests=False, limit=3)
