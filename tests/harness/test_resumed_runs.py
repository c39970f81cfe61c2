"""A run that ends anywhere and is taken up gives what a run in one go gives: every policy and form.

What an answer depends on is more than the arguments of its request, by which lm-eval keys it.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM

from tests.support.running import evaluate, model_args, spied_rows
from trimix_lm_eval.fusion import policies
from trimix_lm_eval.harness import response_cache
from trimix_lm_eval.harness.lm import TriMixLM
from trimix_lm_eval.harness.response_cache import ResponseCache
from trimix_lm_eval.llm import TriMix
from trimix_lm_eval.utils.errors import TrimixError

CONTEXTS = ["the hen in the barn, number 1,", "སྐད་ཡིག 3", "over there " * 12]
OPTIONS = [" the end", " no"]
GRID = "0.3:0.1;0.5:0.1;0.1:0.3;1.0:1.0;1.0:0.1"
#: Forms of generation, the last of which lm-eval takes for greedy, and keeps.
FORMS = {
    "greedy": {},
    "drawn": {"do_sample": True, "temperature": 1.0},
    "warm": {"temperature": 1.0},
}


@pytest.fixture(scope="module")
def folders(pico):
    return pico("llama")


def options_of(task, doc, pairs):
    return [
        Instance("loglikelihood", {}, pair, idx, metadata=(task, doc, 1))
        for idx, pair in enumerate(pairs)
    ]


def asked(kind):
    """Requests of one kind as lm-eval hands them on: repeats in a row, the last one padded."""
    some = []
    if kind == "loglikelihood":
        for doc, context in enumerate(CONTEXTS):  # acc_mutual_info: the same options in each
            pairs = [(c, option) for c in (context, "") for option in OPTIONS]
            some += options_of("mutual", doc, pairs)
            some += options_of("either", doc, [(context + c, " to") for c in (" a", " the")])
        return [*some, some[-1], some[-1]]
    if kind == "loglikelihood_rolling":
        return [
            Instance(kind, {}, (text * 3,), 0, metadata=("rolling", doc, 1))
            for doc, text in enumerate([*CONTEXTS, CONTEXTS[0]])
        ]
    for form, how in FORMS.items():
        for doc, context in enumerate([CONTEXTS[1], *CONTEXTS[1:]]):
            gen_kwargs = {"until": ["\n"], "max_gen_toks": 4, **how}
            one = Instance(kind, {}, (context, gen_kwargs), 0, metadata=(form, doc, 3))
            some += [one] * 3
    return [*some, *[some[-1]] * 3]


KINDS = ("loglikelihood", "loglikelihood_rolling", "generate_until")


def loaded(folders, **arguments):
    return TriMixLM(**model_args(folders, batch_size=3, **arguments))


def answered(lm, cache=None):
    """All answers, and what a results file tells of them."""
    asking = lm if cache is None else CachingLM(lm, str(cache))
    found = {kind: getattr(asking, kind)(asked(kind)) for kind in KINDS}
    told = lm.get_model_info()["trimix"]
    names = ("weights_chosen", "finish_reasons", "task_points", "truncated_requests")
    return found, {name: told[name] for name in names}


def assert_same(got, want):
    assert got[1] == want[1]
    assert got[0]["generate_until"] == want[0]["generate_until"]
    near = {"rel": 1e-5, "abs": 1e-4}
    rolling = "loglikelihood_rolling"
    assert got[0][rolling] == pytest.approx(want[0][rolling], **near)
    mine, theirs = got[0]["loglikelihood"], want[0]["loglikelihood"]
    assert [x for x, _ in mine] == pytest.approx([x for x, _ in theirs], **near)
    assert [greedy for _, greedy in mine] == [greedy for _, greedy in theirs]
    assert all(isinstance(one, tuple) for one in mine)


@pytest.fixture
def ending(monkeypatch):
    """Lets the cache take so many answers before Ctrl-C."""
    keep, left = ResponseCache.keep, [10**6]

    def keep_or_end(self, key, answer):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        keep(self, key, answer)

    def after(count):
        left[0] = count

    monkeypatch.setattr(ResponseCache, "keep", keep_or_end)
    return after


@pytest.mark.parametrize("policy", policies.names())
def test_a_run_that_ended_anywhere_is_taken_up(folders, tmp_path, monkeypatch, ending, policy):
    options = {"grid": GRID} if "grid" in policies.build(policy).options else {}
    model = loaded(folders, policy=policy, **options).model
    monkeypatch.setattr(TriMix, "from_settings", lambda *_: model.part([0]))

    def lm():
        return loaded(folders, policy=policy, **options)

    whole = answered(lm())
    for count in (5, 20):
        ending(count)
        with pytest.raises(KeyboardInterrupt):
            answered(lm(), tmp_path / "cache.db")
    ending(10**6)
    resumed = answered(lm(), tmp_path / "cache.db")
    with spied_rows(monkeypatch) as shapes:
        again = answered(lm(), tmp_path / "cache.db")
    assert shapes == []
    for got in (resumed, again):
        assert_same(got, whole)
    drawn = whole[0]["generate_until"][9:18]
    assert len(set(drawn)) > 6, "repeats and equal prompts are draws of their own"
    if policy in ("ppl", "ent"):
        contextless = [x for i, (x, _) in enumerate(whole[0]["loglikelihood"]) if i % 6 == 2]
        assert len({round(x, 3) for x in contextless}) > 1, (
            "no two documents are weighted differently"
        )


def test_other_options_or_data_are_other_answers(folders, tmp_path):
    """A document's context changes, the options without a context stay: so do their arguments."""
    pairs = [(c, option) for c in (CONTEXTS[0], "") for option in OPTIONS]
    changed = [(c and CONTEXTS[2], option) for c, option in pairs]
    arguments = {"policy": "ppl", "grid": GRID}
    want = loaded(folders, **arguments).loglikelihood(options_of("t", 0, changed))
    for some in (pairs, changed):
        lm = CachingLM(loaded(folders, **arguments), str(tmp_path / "cache.db"))
        got = lm.loglikelihood(options_of("t", 0, some))
    assert [x for x, _ in got] == pytest.approx([x for x, _ in want], rel=1e-5)


def test_a_task_point_is_not_taken_over_by_other_prompts(folders, tmp_path):
    """Documents that would have had a say in it get a point, and answers, of their own."""
    arguments = {"policy": "ppl_task", "grid": GRID}
    model = loaded(folders, **arguments)
    contexts = [*CONTEXTS, "rivers, rivers", "x", "zq and the barn"]
    some = [options_of("t", doc, [(c, o) for o in OPTIONS]) for doc, c in enumerate(contexts)]

    def scored(lm, docs):
        got = lm.loglikelihood([one for doc in docs for one in some[doc]])
        return [x for x, _ in got]

    points, want = {}, {}
    for doc in range(len(some)):
        want[doc] = scored(model, [doc])
        points[doc] = model.task_points["t"].weights
    other = next(doc for doc in points if points[doc] != points[0])
    want[other] = scored(model, [0, other])
    both = model.task_points["t"].weights
    assert len({points[0], points[other]}) == 2
    for docs, point in (([0], points[0]), ([0, other], both), ([0], points[0])):
        lm = loaded(folders, **arguments)
        got = scored(CachingLM(lm, str(tmp_path / "cache.db")), docs)
        assert lm.task_points["t"].weights == point
        assert got == pytest.approx(want[docs[-1]], rel=1e-5)


def test_acc_mutual_info_is_the_same_from_the_cache(folders, task_yaml, tmp_path):
    rows = [
        {"q": context, "choices": OPTIONS, "a": i % 2} for i, context in enumerate(CONTEXTS * 2)
    ]
    folder = task_yaml(
        "mutual",
        rows,
        output_type="multiple_choice",
        doc_to_text="{{q}}",
        doc_to_choice="choices",
        doc_to_target="a",
        target_delimiter="",
        metric_list=[{"metric": "acc"}, {"metric": "acc_mutual_info"}],
    )
    args = model_args(folders, policy="ppl", grid=GRID, batch_size=4)
    run = {"model_args": args, "use_cache": str(tmp_path / "cache")}
    first, again = (evaluate("trimix", folder, ["mutual"], **run) for _ in range(2))
    assert first["results"] == again["results"]
    assert first["config"]["trimix"] == again["config"]["trimix"]


# ---------------------------------------------------------------- the file


@pytest.fixture
def kept(folders, tmp_path):
    """A cache with some answers."""
    file = tmp_path / "cache.db"
    CachingLM(loaded(folders, policy="fixed"), str(file)).loglikelihood(asked("loglikelihood"))
    return file


def rows(file, table="trimix"):
    with closing(sqlite3.connect(file)) as db:
        return dict(db.execute(f'SELECT key, value FROM "{table}"'))


def changed(file, statement, *values):
    with closing(sqlite3.connect(file)) as db:
        db.execute(statement, values)
        db.commit()


def test_lm_evals_own_answers_are_not_there(folders, kept):
    assert rows(kept, "unnamed") == {}
    assert len(rows(kept)) == len(asked("loglikelihood")) + 1
    lm = CachingLM(loaded(folders, policy="fixed"), str(kept))
    first = lm.loglikelihood(asked("loglikelihood"))
    assert lm.loglikelihood(asked("loglikelihood")) == first
    assert rows(kept, "unnamed") == {}


def test_a_damaged_row_counts_as_none(folders, kept, monkeypatch):
    want = loaded(folders, policy="fixed").loglikelihood(asked("loglikelihood"))
    found = {key: row for key, row in rows(kept).items() if key != "fingerprint"}
    for number, (key, row) in enumerate(found.items()):
        place = number * 7 % len(row)
        bad = (row[:place] + chr(ord(row[place]) ^ 1) + row[place + 1 :]).encode()
        bad = b"\xff" + bad if number % 5 == 0 else bad
        changed(kept, "UPDATE trimix SET value = CAST(? AS TEXT) WHERE key = ?", bad, key)
    said: list[str] = []
    monkeypatch.setattr(response_cache, "warn_once", said.append)
    lm = CachingLM(loaded(folders, policy="fixed"), str(kept))
    got = lm.loglikelihood(asked("loglikelihood"))
    assert [x for x, _ in got] == pytest.approx([x for x, _ in want], rel=1e-5)
    assert len(said) == len(found) and "cache.db is damaged" in said[0]
    assert rows(kept).keys() == found.keys() | {"fingerprint"}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("UPDATE trimix SET value = 'x' WHERE key = 'fingerprint'", "does not say whose"),
        ("DELETE FROM trimix WHERE key = 'fingerprint'", "does not say whose"),
        (None, "malformed|disk image|page|row|missing|index"),
    ],
)
def test_a_damaged_file_is_refused(folders, kept, damage, words):
    if damage:
        changed(kept, damage)
    else:
        content = bytearray(kept.read_bytes())
        content[8192:9000] = b"\x07" * 808
        kept.write_bytes(content)
    with pytest.raises(TrimixError, match=f"(?si)cache.db cannot be used: .*({words})"):
        CachingLM(loaded(folders, policy="fixed"), str(kept))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda file: file.mkdir(), "no file but a folder"),
        (lambda file: file.write_text("my notes, " * 99), "file is not a database"),
        (lambda file: file.write_bytes(b"SQLite format 3\0" + bytes(99)), "not a database"),
        (lambda file: file.symlink_to(file.name), "unable to open"),
        (lambda file: file.symlink_to("/dev/full"), "a device"),
        (lambda file: file.parent.rmdir() or file.parent.write_text("x"), "File exists|Not a dir"),
    ],
)
def test_what_cannot_be_a_cache_is_named(folders, tmp_path, make, words):
    file = tmp_path / "kept" / "x_rank0.db"
    file.parent.mkdir()
    make(file)
    before = file.read_bytes() if file.is_file() else None
    with pytest.raises(TrimixError, match=f"(?s)x_rank0.db.* cannot be used .*({words})"):
        CachingLM(loaded(folders, policy="fixed"), str(file))
    assert before is None or file.read_bytes() == before


@pytest.mark.parametrize("path", ["a\0b", "\ud800", "x" * 300, "/proc/none/x"])
def test_names_that_no_cache_can_have(folders, path):
    with pytest.raises(TrimixError, match="cannot be used for --use_cache"):
        CachingLM(loaded(folders, policy="fixed"), path)


def test_a_file_of_an_earlier_version_is_refused(folders, tmp_path):
    from sqlitedict import SqliteDict

    file = tmp_path / "cache.db"
    with SqliteDict(str(file), autocommit=True) as db:
        db["trimix:fingerprint"] = {"policy": {"name": "ppl"}}
        db["0a"] = (-1.0, True)
    before = rows(file, "unnamed")
    with pytest.raises(TrimixError, match="earlier version of trimix"):
        CachingLM(loaded(folders, policy="fixed"), str(file))
    assert rows(file, "unnamed") == before


def test_a_file_that_cannot_be_written_is_named(folders, kept):
    lm = CachingLM(loaded(folders, policy="fixed"), str(kept))
    changed(kept, "CREATE TRIGGER full BEFORE INSERT ON trimix BEGIN SELECT RAISE(ABORT, 'x'); END")
    with pytest.raises(TrimixError, match="cache.db cannot be used: x"):
        lm.loglikelihood_rolling(asked("loglikelihood_rolling"))


def test_a_file_of_other_libraries_is_refused(folders, kept, monkeypatch):
    real = response_cache.version
    monkeypatch.setattr(
        response_cache, "version", lambda name: "5.99" if name == "transformers" else real(name)
    )
    before = rows(kept)
    with pytest.raises(TrimixError, match=r"differ in versions\.transformers \(.* against 5\.99\)"):
        CachingLM(loaded(folders, policy="fixed"), str(kept))
    assert rows(kept) == before
