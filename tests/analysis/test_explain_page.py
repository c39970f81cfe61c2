"""The page of `trimix explain` in a real browser."""

from __future__ import annotations

import pytest

from trimix_lm_eval.analysis.explain import explain, page
from trimix_lm_eval.engine.sampler import SamplingParams

pytestmark = pytest.mark.usefixtures("chromium")
SHOWN = "document.querySelector('.panel .title').innerText"


@pytest.fixture(scope="module")
def explained(trio, tmp_path_factory):
    model = trio("llama").weighted("fixed", speculative=3, alpha=0.3, beta=0.9, gamma=0.5)
    it = explain(model, "The hen went to the", SamplingParams(max_new_tokens=24))
    path = tmp_path_factory.mktemp("page") / "x.html"
    path.write_text(page.render(page.About("A text", [], model.describe()), [it]), encoding="utf-8")
    return path


@pytest.fixture
def opened(browser, explained):
    browser.problems.clear()

    def open_page(width=1280, state=""):
        browser.size(width, 800)
        browser.open(explained, state)
        return browser

    yield open_page
    assert browser.problems == []


@pytest.mark.parametrize(
    ("state", "token"), [("", 1), ("e0t3", 4), ("e0t999", 1), ("\\", 1), ("]", 1), ("%22", 1)]
)
def test_the_token_in_the_address_is_shown(opened, state, token):
    assert f"token {token}" in opened(state=state).value(SHOWN)


@pytest.mark.parametrize("width", [360, 390, 768, 1280])
def test_nothing_is_cut_off(opened, width):
    browser = opened(width)
    assert browser.value("document.documentElement.scrollWidth") <= width
    boxes = "[...document.querySelectorAll('.panel .wide')].map(b => b.scrollWidth - b.clientWidth)"
    assert max(browser.value(boxes)) <= 0, "all columns of the panel are to be seen"


def test_keyboard_alone(opened):
    browser = opened()
    for _ in range(40):
        browser.press("Tab")
        if browser.value("document.activeElement.classList.contains('tok')"):
            break
    browser.press("Tab")
    at = browser.value("+document.activeElement.dataset.first + 1")
    assert at > 1 and f"token {at}" in browser.value(SHOWN)
