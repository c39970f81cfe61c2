"""The page of `trimix report`: its pictures, and how it behaves in a real browser."""

from __future__ import annotations

import dataclasses
import json
import random
from itertools import product

import pytest

from tests.support.results_files import trimix_config, write_run
from trimix_lm_eval.analysis.report import pictures, write
from trimix_lm_eval.analysis.report.model import assemble
from trimix_lm_eval.analysis.report.page import _summary
from trimix_lm_eval.analysis.results import read
from trimix_lm_eval.fusion.weights import PAPER_GRID

pytest.importorskip("matplotlib", reason="pip install 'trimix-lm-eval[report]'")

TASKS = ("trimix_sib200_tam_Taml_ll", "trimix_sib200_bod_Tibt_ll", "another_task_with_a_long_name")
POLICIES = ("ppl", "ppl_task", "ent", "gate", "ppl_answer")
needs_browser = pytest.mark.usefixtures("chromium")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The paper's grid, the single models and five policies, whose choices all differ."""
    folder = tmp_path_factory.mktemp("results")
    told = [trimix_config(name) for name in ("large_ins", "small_cpt", "small_base")]
    told += [trimix_config("fixed", **point._asdict()) for point in PAPER_GRID]
    for place, name in enumerate(POLICIES):
        first = PAPER_GRID[7 * place].label()
        chosen = {task: {first: 3, "0.1:0.9": 1, "1:0.1": 1} for task in TASKS}
        told.append(trimix_config(name, weights_chosen=chosen))
    told[-1]["prompt_nll"] = {
        task: {point.label(): 2 + random.Random(i).random() for i, point in enumerate(PAPER_GRID)}
        for task in TASKS
    }
    for number, config in enumerate(told):
        rng = random.Random(number)
        share = 0.2 + 0.6 * rng.random()
        documents = {task: [float(rng.random() < share) for _ in range(30)] for task in TASKS}
        stamp = f"2026-11-01T00-{number // 60:02d}-{number % 60:02d}.000000"
        path = write_run(folder, documents, trimix=config, stamp=stamp, date=1.79e9 + number)
        if number == 0:
            whole = json.loads(path.read_text())
            whole["config"]["trimix"]["truncated_requests"] = 17
            del whole["n-samples"][TASKS[2]]
            path.write_text(json.dumps(whole))
    return folder


@pytest.fixture(scope="module")
def page(results, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    write([results], folder / "report")
    return folder / "report" / "report.html"


def test_rows_tell_how_they_depart_only_where_they_differ_in_it(tmp_path):
    for place, (name, limit) in enumerate([("ent", 30), ("ppl", 30), ("gate", None)]):
        given = {"limit": limit, "of": 60 if limit else None, "stamp": f"2026-11-01T00-00-0{place}"}
        write_run(
            tmp_path / ("whole" if limit is None else "limited"),
            {TASKS[0]: [1.0, 0.0] * 15},
            trimix=trimix_config(name),
            **given,
        )
    write([tmp_path / "limited"], tmp_path / "alike")
    write([tmp_path], tmp_path / "unlike")
    tables = [(tmp_path / name / "report.md").read_text("utf-8") for name in ("alike", "unlike")]
    alike, unlike = ([x for x in text.split("\n") if x.startswith("| TriMix")] for text in tables)
    assert len(alike) == 2 and not any("limit 30" in line for line in alike)
    assert len([line for line in unlike if "(limit 30, " in line]) == 2


# ---------------------------------------------------------------- pictures


@pytest.fixture(scope="module")
def plane(results):
    (part,) = assemble(*read([results])).parts
    return part.planes[0]


def legend(figure):
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_every_ring_has_a_letter_of_its_own(plane):
    figure = pictures._map(plane, plane.slices[0])
    said = legend(figure)
    letters = [text.get_text() for text in figure.axes[0].texts if text.get_text().isalpha()]
    assert letters == list("abcde") == [line[0] for line in said[:5]]
    for line, name, place in zip(said, POLICIES, range(5), strict=False):
        told = f"{PAPER_GRID[7 * place].label()}: TriMix {name} (60% of its choices)"
        assert line[1:].split() == told.split()
    assert said[5] == f"{plane.oracle.label()}: oracle (best test score)"
    assert max(len(line) for text in said for line in text.split("\n")) <= 70


def test_a_choice_without_a_ring_is_told(plane):
    assert "not run as a point" not in _summary(plane)
    favourite = plane.choices[0].counts[0][0]
    fewer = tuple(point for point in plane.points if point.weights != favourite)
    told = _summary(dataclasses.replace(plane, points=fewer, oracle=None))
    assert f"{favourite.label()} (60%, not run as a point)." in told
    assert told.count("not run as a point") == 1


def test_points_of_the_scatter_are_named_beside_it(plane):
    figure = pictures._nll(plane)
    lowest = min(plane.scattered, key=lambda point: point.nll)
    assert legend(figure) == [
        f"lowest NLL: {lowest.weights.label()}",
        f"oracle: {plane.oracle.label()}",
    ]
    assert not figure.axes[0].texts, "labels within would cover points and each other"


def test_panels_stay_large_enough_to_read(plane):
    figure = pictures._choices(plane)
    drawn = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title(loc="left").split(" (")[0] for axes in drawn] == [
        f"TriMix {name}" for name in POLICIES
    ]
    assert figure.get_figwidth() <= 7.5


def free(weights, gamma=0.3):
    return weights._replace(gamma=gamma)


@pytest.fixture(scope="module")
def freed(plane):
    """Every point with a gamma of 0.3, too, and one with 0.7; the oracle and a choice are such."""
    more = [point._replace(weights=free(point.weights)) for point in plane.points]
    more = [point for point in more if point.weights.alpha != 0.3]  # there gamma is alpha anyway
    more.append(plane.points[0]._replace(weights=free(plane.points[0].weights, 0.7)))
    first, *choices = plane.choices
    chosen = tuple((free(weights), count) for weights, count in first.counts)
    return dataclasses.replace(
        plane,
        points=(*plane.points, *more),
        oracle=free(plane.points[0].weights),
        choices=(first._replace(counts=chosen), *choices),
    )


def title(figure):
    return figure.axes[0].get_title(loc="left")


def test_where_gamma_is_free_there_is_a_map_of_each(freed):
    """A map that 0.3 lies on by itself, as alpha, has these points as well."""
    assert freed.gammas == [0.3, 0.7]
    flat, cut = freed.slices  # one point does not make a map
    assert (flat.gamma, cut.gamma) == (None, 0.3)
    assert len(flat.points) == len(cut.points) == len(PAPER_GRID)
    first, second = (pictures._map(freed, each) for each in (flat, cut))
    assert title(first).endswith(", γ (large_base) = α")
    assert title(second).endswith(", γ (large_base) = 0.3")
    ours = f"{freed.choices[0].counts[0][0].label()}: TriMix {POLICIES[0]} (60% of its choices)"
    joined = [" ".join(" ".join(legend(figure)).split()) for figure in (first, second)]
    assert ours in joined[1] and ours not in joined[0]
    assert "oracle (best test score)" in joined[1] and "oracle" not in joined[0]


def test_the_free_dimension_is_named(freed, plane):
    told = "squares: γ (large_base) is not α"
    assert told in title(pictures._nll(freed)) and told not in title(pictures._nll(plane))
    assert told in pictures._choices(freed).get_suptitle()
    assert "γ (large_base) is free: some points have 0.3, 0.7 in place of α." in _summary(freed)
    kinds = [picture.kind for picture in pictures.pictures(freed)]
    assert kinds == ["map", "map_gamma_0.3", "nll", "choices"]
    assert "γ" not in _summary(plane) and "γ" not in title(pictures._map(plane, plane.slices[0]))


# ---------------------------------------------------------------- in a browser


@pytest.fixture
def opened(browser, page):
    """Opens the page; it must have asked for nothing and complained of nothing."""
    browser.problems.clear()
    browser.asked.clear()

    def open_page(width=1280, state=""):
        browser.size(width, 800)
        browser.open(page, state)
        return browser

    yield open_page
    assert browser.problems == []
    asked = {address.partition("#")[0] for address in browser.asked}
    assert {address for address in asked if not address.startswith("data:")} <= {page.as_uri()}


@needs_browser
@pytest.mark.parametrize(("width", "state"), list(product((1280, 390), ("runs", "run40", "s1t0"))))
def test_a_link_leads_to_its_place(opened, width, state):
    """Also past many pictures, and with something to be seen there."""
    browser = opened(width, state)
    box = f"document.getElementById('{state}').getBoundingClientRect()"
    assert -1 <= browser.value(f"{box}.top") < 400 and browser.value(f"{box}.height") > 20
    seen = "document.elementFromPoint(innerWidth / 3, innerHeight / 2).innerText"
    assert browser.value(seen).strip()


@needs_browser
@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_only_tables_scroll_sideways(opened, width):
    browser = opened(width)
    browser.value("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert browser.value("document.documentElement.scrollWidth") <= width
    # What explains a table does not pass out of sight with its columns.
    notes = "[...document.querySelectorAll('.notes')].map(n => n.getBoundingClientRect().right)"
    assert max(browser.value(notes)) <= width
    assert browser.value("!document.querySelector('.scroll .notes, caption')")
    box = "document.querySelector('.scroll')"
    browser.value(f"{box}.scrollLeft = 120")
    left = f"{box}.querySelector('tbody th').getBoundingClientRect().left"
    assert 0 <= browser.value(left) < width / 4, "the row's name stays"
    pictures_ = "[...document.images].every(i => i.complete && i.naturalWidth > 0)"
    assert browser.value(pictures_)


@needs_browser
def test_the_way_about_a_long_page(opened):
    browser = opened()
    links = browser.value("[...document.querySelectorAll('nav a')].map(a => a.innerText)")
    for title in ("trimix_sib200", "Weights: what was good, and what was chosen"):
        assert any(link.startswith(title) for link in links)
    missing = """[...document.querySelectorAll('a[href^="#"]')]
        .filter(a => !document.getElementById(a.hash.slice(1))).length"""
    assert browser.value(missing) == 0


def test_what_is_not_known_is_no_zero(page):
    text = page.read_text()
    assert "n = 0" not in text and "n = not known" in text
    assert "17 requests were longer than the context" in text
    assert "17 requests were longer" in page.with_suffix(".md").read_text()
