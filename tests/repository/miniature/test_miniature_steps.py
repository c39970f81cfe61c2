"""The steps of the miniature: in their order, once each, up to the trio that ships."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.slow


def test_every_step_up_to_the_sweep_at_toy_size(folder, tmp_path):
    import plan
    import recipe
    import steps

    planned = plan.steps(recipe.SMOKE, folder, tmp_path, [0], "dev")
    results = ["seed0/results_dev_large", "seed0/results_dev_medium"]
    last = [*results, "probe_dev", "report_dev", "claims_dev"]
    assert [step.name for step in planned[-5:]] == last
    steps.run([*planned[:-5], planned[-3]], tmp_path)
    probe = (tmp_path / "probe_dev/probe.md").read_text().splitlines()
    assert len(probe) == 7 and {line.count("|") for line in probe} == {6}
    sizes = [f"{size}_{kind}" for size in ("medium", "large") for kind in ("base", "ins")]
    for role in ("small_base", *sizes, "small_cpt_bo", "small_cpt_ug"):
        assert (tmp_path / "seed0" / role / "model.safetensors").exists()
        assert not (tmp_path / "seed0" / role / "training.pt").exists()
    items = tmp_path / "items_dev"
    tasks = {path.stem for path in (items / "tasks").glob("mini_*.yaml")}
    # Seven kinds chosen, five of them written, running text, and a group of all.
    assert len(tasks) == 3 * 14
    rows = [json.loads(line) for line in (items / "bo/follow.jsonl").open(encoding="utf-8")]
    assert len(rows) == 2 and all(row["choices"][row["label"]] == row["answer"] for row in rows)
    first, second = passes((tmp_path / "texts/ug_cpt.txt").read_text(encoding="utf-8"))
    assert [len(set(document.split())) for document in first] == [
        len(set(document.split())) for document in second
    ], "the same words"
    assert first != second, "but other quotations"
    dropped = (tmp_path / "seed0/small_cpt_bo/cpt/data/dropped.jsonl").read_text(encoding="utf-8")
    assert "duplicate" not in dropped, "what a task asks for stands in its text already"
    check_the_demo(planned, tmp_path)


def passes(text: str) -> tuple[list[str], list[str]]:
    """The documents of both passes over a text."""
    documents = text.splitlines()
    half = len(documents) // 2
    assert len(documents) == 2 * half > 20
    return documents[:half], documents[half:]


def check_the_demo(planned, out):
    """What a trio is made of, and where it goes."""
    import demo

    names = [step.name for step in demo.needed(planned, 0)]
    assert names == [
        *("texts", "tokenizer", "seed0/small_base", "seed0/large_base", "seed0/large_ins"),
        "seed0/small_cpt_bo",
    ], "and the test items, which are none of these steps' needs"
    checkout = out / "checkout"
    place = checkout / "trimix_lm_eval/loading/demo"
    data = checkout / "tasks/demo/data"
    for folder in (place / "large_ins", data):
        folder.mkdir(parents=True)
        (folder / "old.jsonl").write_text("{}")
    demo.install(out / "seed0", out / "items_dev", checkout)
    names = {"config.json", "generation_config.json", "model.safetensors"}
    names |= {"tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in (place / "large_ins").iterdir()} == {
        *names,
        "chat_template.jinja",
    }
    for role in ("small_base", "small_cpt"):
        assert {path.name for path in (place / role).iterdir()} == names
    cpt = (out / "seed0/small_cpt_bo/model.safetensors").read_bytes()
    assert (place / "small_cpt/model.safetensors").read_bytes() == cpt
    asked = {f"{kind}{end}" for kind in demo.KINDS for end in ("", "_exemplars")}
    assert {path.stem for path in data.iterdir()} == asked - {"rolling_exemplars"}


def test_steps_are_done_once_and_never_taken_for_another_recipe_s(tmp_path):
    import steps

    done = []

    def step(name, recipe, *needs, **how):
        def make(folder):
            done.append((name, sorted(path.name for path in folder.iterdir())))
            (folder / "half").touch()
            if recipe == {"killed": True}:
                raise KeyboardInterrupt

        return steps.Step(name, needs, recipe, make, **how)

    first = [step("a", {"n": 1}), step("b", {"n": 1}, "a"), step("c", {}, "b", summary=True)]
    steps.run(first, tmp_path)
    steps.run(first, tmp_path)
    assert [name for name, _ in done] == ["a", "b", "c"]
    more = [*first[:2], step("d", {}, "a"), step("c", {}, "b", "d", summary=True)]
    steps.run(more, tmp_path)
    assert done[3:] == [("d", []), ("c", [])], "what is summed up has changed"
    other = [first[0], step("b", {"n": 2}, "a"), step("e", {}, "a"), step("f", {}, "b")]
    with pytest.raises(SystemExit, match=r"b was made by another recipe \(n is 2, was 1\)"):
        steps.run(other, tmp_path)
    steps.run(other, tmp_path, "e")
    with pytest.raises(SystemExit, match="b was made by another recipe"):
        steps.run(other, tmp_path, "f")

    with pytest.raises(KeyboardInterrupt):
        steps.run([step("g", {"killed": True}, resumes=True)], tmp_path)
    with pytest.raises(SystemExit, match="g was made by another recipe"):
        steps.run([step("g", {"killed": False}, resumes=True)], tmp_path)
    with pytest.raises(KeyboardInterrupt):
        steps.run([step("g", {"killed": True}, resumes=True)], tmp_path)
    with pytest.raises(KeyboardInterrupt):
        steps.run([step("h", {"killed": True})], tmp_path)
    steps.run([step("h", {"killed": False})], tmp_path)
    assert done[-4:] == [("g", []), ("g", ["half"]), ("h", []), ("h", [])]
    assert set(steps.seconds(tmp_path)) == {"a", "b", "c", "d", "e", "h"}


@pytest.mark.parametrize("other", ["--smoke", "--dev", "--only=texts"])
def test_a_toy_is_never_installed(other, monkeypatch, capsys):
    import run

    monkeypatch.setattr("sys.argv", ["run.py", "--texts", "texts", "--demo", other])
    with pytest.raises(SystemExit):
        run.main()
    assert "leave out --smoke, --dev and --only" in capsys.readouterr().err
