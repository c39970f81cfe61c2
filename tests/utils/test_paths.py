"""What files and models are called where other people read it."""

import pytest

from trimix_lm_eval.utils import paths


@pytest.mark.parametrize(
    ("path", "told"),
    [
        (str(paths.demo_dir() / "large_ins"), "demo/large_ins"),
        ("/home/me/src/trimix_lm_eval/demo/small_cpt", "demo/small_cpt"),
        ("C:\\venv\\trimix_lm_eval\\loading\\demo\\small_base", "demo/small_base"),
        ("org/trimix_lm_eval", "org/trimix_lm_eval"),
        ("/home/me/trimix_lm_eval/demo/a/b", "/home/me/trimix_lm_eval/demo/a/b"),
        ("/home/me/model", "/home/me/model"),
    ],
)
def test_the_demo_has_one_name_wherever_it_lies(path, told):
    assert paths.named(path) == told


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("org/name", "org/name"),
        ("runs/small_cpt", "runs/small_cpt"),
        ("/x/trimix_lm_eval/demo/large_ins", "demo/large_ins"),
        ("/home/me/models/mine", "…/models/mine"),
        ("~/models/mine/", "…/models/mine"),
        ("D:\\models\\of me\\mine", "…/of me/mine"),
        ("\\\\server\\share\\models\\mine", "…/models/mine"),
        ("/mnt/model", "…/model"),
        ("/", "…"),
    ],
)
def test_pages_show_no_path_of_the_machine(path, told):
    assert paths.shown(path) == told


def test_what_lies_below_the_current_folder_is_told_from_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert paths.shown(tmp_path / "runs" / "a" / "b" / "c.json") == "runs/a/b/c.json"
    assert paths.shown(tmp_path.parent / "a" / "b" / "c" / "d.json", 3) == "…/b/c/d.json"
