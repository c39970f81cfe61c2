"""The leaderboard: what gets onto it, and how the page behaves in a real browser."""

from __future__ import annotations

import copy
import csv
import os
import re
import subprocess
from html import unescape
from urllib.parse import quote

import pytest

from tests.analysis.test_export import TASK, add_task, changed, fewer, submittable
from tests.support.results_files import aggregate, trimix_config
from trimix_lm_eval import cli
from trimix_lm_eval.analysis import export
from trimix_lm_eval.analysis.leaderboard import entries
from trimix_lm_eval.analysis.leaderboard.page import COLUMNS

MATH = "trimix_milic_bo_math"
EVIL = '"><img src=x onerror=alert(1)></script><script>document.title="taken"</script>'
SPACED = "  two  blanks,\n a line end, \t a tab "
needs_browser = pytest.mark.usefixtures("chromium")


def write_results(folder):
    """Two families, two policies, two tasks in two languages; and a name that is markup."""
    shares = {"ppl": 150, "large_ins": 100}
    models = ("Qwen/Qwen2.5-7B-Instruct", "google/gemma-3-12b-it")
    for i, model in enumerate(models):
        for policy, right in shares.items():
            told = trimix_config(policy)
            told["sources"] = copy.deepcopy(told["sources"])
            told["sources"]["large_ins"]["path"] = model
            answers = [1.0] * (right + i) + [0.0] * (204 - right - i)
            submittable(folder / f"{i}{policy}", policy, (TASK, MATH), answers, told)
    other = submittable(folder / "evil", date=1_791_000_000.0)
    changed(other, add_task(EVIL))
    changed(other, lambda content: content["results"].pop(TASK))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("leaderboard")
    write_results(folder / "results")
    assert cli.main(["leaderboard", str(folder / "results"), "--output", str(folder)]) == 0
    return folder / "index.html"


# --- what gets onto it ------------------------------------------------------------------------


def test_csv_and_json_of_one_run_are_one_entry(tmp_path):
    write_results(tmp_path)
    before, _ = entries.collect(tmp_path)
    export.main([tmp_path], "csv", tmp_path / "sent")
    after, problems = entries.collect(tmp_path)
    assert after == before and not problems and len(before) == 9
    top = {(e.row.task, e.row.large_ins, e.row.policy) for e in before if e.best}
    best = ("google/gemma-3-12b-it", "ppl")
    assert top == {(TASK, *best), (MATH, *best), (EVIL, "org/large_ins", "ppl")}


def test_less_can_be_better(tmp_path):
    for name, value in (("ent", 0.0), ("ppl", 1.0)):
        path = submittable(tmp_path / name, name, documents=[value] * 204)
        changed(path, lambda content: content["higher_is_better"][TASK].update(acc=False))
    found, _ = entries.collect(tmp_path)
    assert [(e.row.policy, e.best) for e in found] == [("ent", True), ("ppl", False)]


def test_groups_are_entries(tmp_path):
    path = submittable(tmp_path / "run", tasks=(TASK, MATH))
    aggregate(path, "mine", [TASK, MATH])
    export.main([path], "csv", tmp_path / "sent")
    found, problems = entries.collect(tmp_path)
    assert not problems and {entry.row.task for entry in found} == {TASK, MATH, "mine"}
    assert cli.main(["leaderboard", str(tmp_path), "--output", str(tmp_path)]) == 0
    text = (tmp_path / "index.html").read_text()
    assert 'data-lang="several" data-task="mine"' in text
    assert '<td data-sort="" class="number">–</td>' in text


def test_what_may_not_be_shown_is_named(tmp_path, capsys):
    submittable(tmp_path / "good")
    changed(submittable(tmp_path / "bad"), fewer)
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn/results_1.json").write_text('{"results": ')
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    assert cli.main(["leaderboard", str(tmp_path), "--output", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "1 results; 3 left out" in out
    assert err.count("left out: ") == 3
    assert "20 of 204 documents" in err and "is not JSON" in err and "is no CSV" in err


def test_what_many_files_have_in_common_is_told_once(tmp_path, capsys):
    for number in range(40):
        changed(submittable(tmp_path / str(number)), fewer)
    assert cli.main(["leaderboard", str(tmp_path), "--output", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert err.count("left out: ") == 1 and "40 results, for example " in err
    assert err.count("results_") == 2 and "40 were left out" in err


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()])
def test_nothing_to_show(tmp_path, capsys, make):
    make(tmp_path / "results")
    assert cli.main(["leaderboard", str(tmp_path / "results"), "--output", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "index.html").exists()


ODD = ("=1+1", "+a", "@x", "-b", "\tc", "\rd", "'=e", "-1", " f  g\n\n h ", "i\ud800")


def test_odd_names_come_back_from_csv(tmp_path):
    """Formulas are none, halves of characters are question marks, and one run is one entry."""
    path = submittable(tmp_path / "in")
    for name in ODD:
        changed(path, add_task(name))
    changed(path, lambda content: content["results"].pop(TASK))
    before, problems = entries.collect(tmp_path)
    assert not problems
    (written,) = export.main([path], "csv", tmp_path / "sent")
    tasks = [line[0] for line in csv.reader(written.open(newline=""))][1:]
    assert [task for task in tasks if task[0] in "=+-@\t\r"] == ["-1"]
    after, problems = entries.collect(tmp_path)
    assert after == before and not problems
    assert {e.row.task for e in after} == {*ODD[:-1], "i?"}
    assert cli.main(["leaderboard", str(tmp_path), "--output", str(tmp_path / "site")]) == 0


def test_placeholders_in_csv_of_others_are_left_out(tmp_path, capsys):
    (written,) = export.main([submittable(tmp_path / "in")], "csv", tmp_path / "sent")
    good = written.read_text()
    for number, (old, new) in enumerate(
        [(",acc,", ",bypass,"), (",0.75,", ",-1,"), (",204,", ",0,"), (",2026-", ",20x6-")]
    ):
        assert old in good
        (tmp_path / f"sent/{number}.csv").write_text(good.replace(old, new))
    found, left_out = entries.collect(tmp_path)
    assert len(found) == 1 and len(left_out) == 4
    assert "a placeholder: --predict_only" in str(left_out[0].reasons[0])


def test_an_index_of_somebody_s_is_kept(tmp_path, capsys):
    submittable(tmp_path / "in")
    index = tmp_path / "site/index.html"
    index.parent.mkdir()
    index.write_text("mine")
    command = ["leaderboard", str(tmp_path / "in"), "--output", str(index.parent)]
    assert cli.main(command) == 1
    assert "index.html is there already" in capsys.readouterr().err
    assert index.read_text() == "mine"
    index.unlink()
    assert cli.main(command) == 0 and cli.main([*command, "--title", "another"]) == 0
    assert "<title>another</title>" in index.read_text()


def test_what_is_read_is_not_written_over(tmp_path, capsys):
    """Not even where it says that the command wrote it."""
    (tmp_path / "in").mkdir()
    submittable(tmp_path / "in")
    kept = tmp_path / "in" / "results_of_others.json"
    kept.write_text('<meta name="generator" content="trimix leaderboard">')
    (tmp_path / "index.html").symlink_to(kept)
    before = kept.read_bytes()
    assert cli.main(["leaderboard", str(tmp_path / "in"), "--output", str(tmp_path)]) == 1
    assert "are the same file" in capsys.readouterr().err
    assert kept.read_bytes() == before


def test_a_file_that_cannot_be_used_ends_nothing(tmp_path, capsys):
    path = submittable(tmp_path / "in")
    text = path.read_text()
    path.with_name("results_date.json").write_text(text.replace("1790000000.0", "1" + "0" * 400))
    path.with_name("results_half.json").write_text(text.replace(TASK, "\\ud800"))
    path.with_name("results_twice.json").write_text(text.replace('"date"', '"date": 1, "date"'))
    path.with_name("results_loop.json").symlink_to(path.with_name("results_loop.json"))
    os.mkfifo(path.with_name("pipe.csv"))
    assert cli.main(["leaderboard", str(path.parent), "--output", str(tmp_path / "site")]) == 0
    out, err = capsys.readouterr()
    assert "3 results; 3 left out" in out and err.count("left out: ") == 3
    for name in ("results_twice.json", "results_loop.json", "pipe.csv"):
        assert name in err


def test_page_is_one_file_that_asks_for_nothing(page):
    text = page.read_text(encoding="utf-8")
    assert not re.findall(r"<(?:link|img|iframe|script[^>]+src)", text)
    assert "default-src 'none'" in text
    assert re.findall(r'href="(?!https://huggingface\.co/)', text) == []
    assert f'href="https://huggingface.co/google/gemma-3-12b-it/tree/{"1" * 40}"' in text
    assert EVIL not in text and EVIL in unescape(text)


def test_every_number_is_in_the_page(page):
    text = page.read_text(encoding="utf-8")
    for right in (100, 101, 150, 151):
        assert len(re.findall(f">{right / 204:.4f}</(?:td|strong)>", text)) == 2
        variance = right / 204 * (1 - right / 204) * 204 / 203
        assert f"{(variance / 204) ** 0.5:.4f}</td>" in text
    assert text.count(">204</td>") == 9 and "2026-09-21" in text


# --- how it behaves ---------------------------------------------------------------------------

SEEN = """[...document.querySelectorAll('tbody tr')].filter(row => !row.hidden)
          .map(row => [...row.cells].map(cell => cell.innerText.trim()))"""
FOCUS = "document.activeElement.id || document.activeElement.innerText"


@pytest.fixture
def opened(browser, page):
    """Opens the page in a state; it must have asked for nothing and complained of nothing."""
    browser.problems.clear()
    browser.asked.clear()
    browser.size(1280, 900)

    def open_page(state=""):
        browser.open(page, state)
        return browser

    yield open_page
    assert browser.problems == []
    assert {address.partition("#")[0] for address in browser.asked} <= {page.as_uri()}


@needs_browser
def test_page_from_the_command_line_of_the_browser(chromium, page, tmp_path):
    """From a file, with no protocol in between: what a reader's browser makes of a link."""
    address = f"{page.as_uri()}#sort=score&dir=asc&lang=Tibetan&family=qwen2.5"
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    done = subprocess.run(
        [*command, f"--user-data-dir={tmp_path}", address],
        capture_output=True,
        text=True,
        timeout=120,
    )
    rows = re.findall(r"<tr data-lang.*?>", done.stdout)
    visible = [row for row in rows if "hidden" not in row]
    assert len(rows) == 9 and len(visible) == 2
    assert 'data-policy="large_ins"' in visible[0] and 'data-policy="ppl"' in visible[1]
    assert "2 of 9 results" in done.stdout
    assert re.search(r'data-key="score" class="number" aria-sort="ascending"', done.stdout)


@needs_browser
def test_every_column_sorts_both_ways(opened):
    browser = opened()
    for at, column in enumerate(COLUMNS):
        head = f"document.querySelectorAll('thead th')[{at}]"
        ways = []
        for _ in range(2):
            browser.value(f"{head}.querySelector('button').click()")
            ways.append(browser.value(f"{head}.getAttribute('aria-sort')"))
            cells = browser.value(
                f"[...document.querySelectorAll('tbody tr')].map(r => r.cells[{at}].dataset.sort)"
            )
            values = [float(c) for c in cells] if column.number else [c.lower() for c in cells]
            if column.key not in ("task", "sources"):  # markup sorts by the browser's own collation
                assert values == sorted(values, reverse=ways[-1] == "descending"), column
        first = "descending" if column.number else "ascending"
        assert ways[0] == first and set(ways) == {"ascending", "descending"}
        assert browser.value("document.querySelectorAll('[aria-sort]').length") == 1


@needs_browser
@pytest.mark.parametrize(
    ("state", "count"),
    [
        ("", 9),
        ("lang=Bengali", 4),
        ("lang=unknown", 1),
        (f"task={MATH}", 4),
        ("family=gemma3", 4),
        ("policy=ppl", 5),
        ("policy=ppl&lang=Tibetan&family=qwen2.5", 1),
        ("q=GEMMA math", 2),
        ("q=nothing of the kind", 0),
        (f"task={quote(EVIL)}", 1),
        ("lang=<b>&sort=nonsense&x=y&%", 9),
    ],
)
def test_state_in_the_address(opened, state, count):
    browser = opened(state)
    assert len(browser.value(SEEN)) == count
    told = "9 results" if count == 9 else f"{count} of 9 results"
    assert browser.value("document.getElementById('count').textContent") == told
    assert browser.value("document.getElementById('none').hidden") == (count > 0)
    assert browser.value("document.title") == "TriMix leaderboard"


@needs_browser
def test_white_space_in_names_is_kept_by_the_filters(browser, tmp_path):
    """A browser takes it out of an option's text, which then is the value of no row."""
    path = submittable(tmp_path, tasks=(TASK, MATH))
    changed(path, add_task(SPACED))
    changed(path, lambda content: content["results"].pop(TASK))
    assert cli.main(["leaderboard", str(tmp_path), "--output", str(tmp_path / "site")]) == 0
    browser.open(tmp_path / "site/index.html", "")
    browser.value("""{const s = document.getElementById('task'); s.selectedIndex = 1;
                     s.dispatchEvent(new Event('input', {bubbles: true}))}""")
    assert [row[0].split() for row in browser.value(SEEN)] == [SPACED.split()]
    browser.open(tmp_path / "site/index.html", f"task={quote(SPACED)}")
    assert [row[0].split() for row in browser.value(SEEN)] == [SPACED.split()]


@needs_browser
def test_the_address_follows(opened):
    browser = opened()
    browser.value("""{const s = document.getElementById('family'); s.value = 'qwen2.5';
                     s.dispatchEvent(new Event('input', {bubbles: true}))}""")
    browser.value("document.querySelector('[data-key=score] button').click()")
    state = browser.value("location.hash")
    assert state == "#sort=score&dir=desc&family=qwen2.5"
    seen = browser.value(SEEN)
    assert [row[2] for row in seen] == ["0.7353"] * 2 + ["0.4902"] * 2
    assert opened(state[1:]).value(SEEN) == seen
    # A link to another view within the page that is open.
    browser.value("""new Promise(done => {
        addEventListener('hashchange', () => done(), {once: true});
        location.hash = '#policy=large_ins' })""")
    assert {row[1] for row in browser.value(SEEN)} == {"large_ins"}
    browser.value("document.querySelector('[type=reset]').click()")
    assert len(browser.value(SEEN)) == 9


@needs_browser
def test_keyboard_alone(opened):
    browser = opened()
    stops = []
    for _ in range(6 + 1 + len(COLUMNS)):
        browser.press("Tab")
        stops.append(browser.value(FOCUS))
    assert stops[:5] == ["q", "lang", "task", "family", "policy"]
    assert stops[5] == "Clear" and stops[7:] == [column.title for column in COLUMNS]
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert browser.value(outline) == "solid"
    for key, way in (("Enter", "ascending"), (" ", "descending")):
        browser.press(key)
        assert browser.value("document.activeElement.parentNode.getAttribute('aria-sort')") == way
    browser.press("Tab")
    assert browser.value("document.activeElement.localName") == "summary"
    browser.press("Enter")
    assert browser.value("document.activeElement.parentNode.open") is True
    browser.value("document.getElementById('q').focus()")
    for letter in "math":
        browser.press(letter)
    assert {row[0] for row in browser.value(SEEN)} == {MATH}


@needs_browser
@pytest.mark.parametrize("width", [320, 390, 768])
def test_narrow_screens_scroll_the_table_only(opened, browser, width):
    browser.size(width, 800)
    opened()
    browser.value("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert browser.value("document.documentElement.scrollWidth") <= width
    box = "document.querySelector('.scroll')"
    assert browser.value(f"{box}.scrollWidth > {box}.clientWidth")
    browser.value(f"{box}.scrollLeft = 500")
    # The task stays in sight while the numbers pass behind it.
    left = "document.querySelector('tbody th').getBoundingClientRect().left"
    assert 0 <= browser.value(left) < 30
    low = "Math.min(...[...document.querySelectorAll('select, input')].map(e => e.offsetHeight))"
    assert browser.value(low) >= 40


@needs_browser
def test_dark_when_the_reader_wants_it(opened, browser):
    def ground():
        opened()
        colour = browser.value("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour)))

    feature = {"name": "prefers-color-scheme"}
    try:
        for wanted, is_dark in (("dark", True), ("light", False)):
            browser.send("Emulation.setEmulatedMedia", features=[{**feature, "value": wanted}])
            assert (ground() < 3 * 128) == is_dark
    finally:
        browser.send("Emulation.setEmulatedMedia", features=[])


@needs_browser
def test_without_javascript_the_table_is_there(opened, browser):
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        opened()
        # The protocol still may ask, though the page's own script did not run.
        assert len(browser.value(SEEN)) == 9
        assert browser.value("document.querySelectorAll('thead button').length") == 0
        assert browser.value("document.getElementById('filters').offsetHeight") == 0
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)
