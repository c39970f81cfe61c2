"""What `trimix cpt` reads back may be damaged: the result is the same, or the error names it."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from tests.support.cpt_runs import config, difference
from trimix_lm_eval.training.cpt import checkpoints, packing, run, saving, seals, train
from trimix_lm_eval.training.cpt.config import Config
from trimix_lm_eval.utils.errors import TrimixError

pytestmark = pytest.mark.slow

#: How many damages are tried; more were by hand.
DAMAGES = 50


class Killed(BaseException):
    """Raised where a process is to end."""


@pytest.fixture(scope="module")
def small_base(pico):
    return pico("llama", padded=False)["small_base"]


@pytest.fixture(scope="module")
def stopped(small_base, tmp_path_factory):
    """(config, folder) of a run that was killed with its checkpoints there."""
    folder = tmp_path_factory.mktemp("stopped")
    given = config(small_base, folder)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(saving, "trained", _dies)
        train(given)
    return given, folder


@pytest.fixture(scope="module")
def finished(stopped, tmp_path_factory):
    """The folder of the model that comes of it."""
    given, folder = stopped
    out = tmp_path_factory.mktemp("finished") / "out"
    shutil.copytree(folder / "out", out)
    train(_into(out, given))
    return out


def _dies(*args, **kwargs):
    raise Killed


def _into(out: Path, given: dict) -> dict:
    """The config of a copied run, which is known by its folder."""
    again = {**given, "output": str(out)}
    file = out / "cpt" / "run.json"
    seals.write_record(file, {**seals.read_record(file), "output": str(out)})
    return again


@pytest.fixture
def copy(stopped, tmp_path):
    """(config, folder) of a copy of the stopped run."""
    given, folder = stopped
    shutil.copytree(folder / "out", tmp_path / "out")
    return _into(tmp_path / "out", given), tmp_path / "out"


def damage(file: Path, draw: random.Random) -> None:
    """Truncate a file, or change, double or delete some bytes of it."""
    data = bytearray(file.read_bytes())
    if not data:
        file.write_bytes(b"1")
        return
    at = draw.randrange(len(data))
    kind = draw.choice(("truncate", "flip", "digit", "insert", "empty", "gone", "zeros"))
    if kind == "gone":
        file.unlink()
        return
    if kind == "truncate":
        del data[at:]
    elif kind == "flip":
        data[at : at + 1] = bytes([data[at] ^ (1 << draw.randrange(8))])
    elif kind == "digit":  # a number that stays one
        places = [i for i, byte in enumerate(data[:100_000]) if chr(byte).isdigit()] or [at]
        data[draw.choice(places)] = ord(str(draw.randrange(10)))
    elif kind == "insert":
        data[at:at] = data[max(0, at - 9) : at + 1]
    elif kind == "empty":
        data.clear()
    else:
        data[at : at + 64] = bytes(len(data[at : at + 64]))
    file.write_bytes(bytes(data))


def try_damages(given: dict, folder: Path, place: Path, model: Path, count: int, seed: int) -> dict:
    """Damage copies of a stopped run and go on with each; returns how often what happened."""
    draw = random.Random(seed)
    files = sorted(p.relative_to(folder) for p in (folder / "cpt").rglob("*") if p.is_file())
    files = [name for name in files if name.name != ".lock"]
    counts = {"same": 0, "named": 0}
    for turn in range(count):
        out = place / str(turn)
        shutil.copytree(folder, out)
        again = _into(out, given)
        name = draw.choice(files)
        damage(out / name, draw)
        try:
            train(again)
        except TrimixError as error:
            assert str(out / name) in str(error), (name, error)
            counts["named"] += 1
        else:
            assert difference(out, model) == 0, name
            theirs, mine = (seals.read_record(at / "cpt" / run._FINISHED) for at in (model, out))
            assert mine["measured"] == theirs["measured"], name
            counts["same"] += 1
        shutil.rmtree(out)
    return counts


def test_random_damage_to_what_is_read_back(stopped, finished, tmp_path, monkeypatch):
    """Going on costs half a second a time, so most damages are tried where they are found."""
    given, folder = stopped
    counts = try_damages(given, folder / "out", tmp_path, finished, 6, seed=1)
    assert sum(counts.values()) == 6 and counts["same"]
    draw = random.Random(2)
    sealed = [folder / "out/cpt/data", *sorted((folder / "out/cpt/checkpoints").iterdir())]
    for turn in range(DAMAGES):
        of = draw.choice(sealed)
        place = tmp_path / f"sealed-{turn}"
        shutil.copytree(of, place)
        name = draw.choice([*seals.contents(of), seals.SEAL])
        damage(place / name, draw)
        unchanged = (place / name).exists() and (place / name).read_bytes() == (
            of / name
        ).read_bytes()
        assert (seals.faults(place) == []) == unchanged, name
        shutil.rmtree(place)
    for turn in range(DAMAGES):
        shutil.copy(folder / "out/cpt/run.json", tmp_path / "record.json")
        damage(tmp_path / "record.json", draw)
        found = seals.read_record(tmp_path / "record.json")
        assert found in (None, seals.read_record(folder / "out/cpt/run.json")), turn


# ---------------------------------------------------------------- one damage at a time


def test_a_truncated_checkpoint_is_named_and_the_one_before_is_taken(copy, finished, capsys):
    given, out = copy
    weights = out / "cpt/checkpoints/checkpoint-12/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    train(given)
    said = capsys.readouterr().out
    assert f"warning: {weights} is damaged" in said and "going on after step 8" in said
    assert difference(out, finished) == 0


def test_the_best_checkpoint_must_be_whole(tmp_path):
    for steps in (5, 10):
        folder = tmp_path / f"checkpoint-{steps}"
        folder.mkdir()
        state = f'{{"best_model_checkpoint": "elsewhere/{tmp_path.name}/checkpoint-5"}}'
        (folder / "trainer_state.json").write_text(state)
        seals.seal(folder)
    assert checkpoints.newest(tmp_path) == tmp_path / "checkpoint-10"
    (tmp_path / "checkpoint-5" / "trainer_state.json").write_text("{}")
    with pytest.raises(TrimixError, match=r"checkpoint-5/trainer_state.json is damaged or gone"):
        checkpoints.newest(tmp_path)
    shutil.rmtree(tmp_path / "checkpoint-5")
    assert checkpoints.newest(tmp_path) == tmp_path / "checkpoint-10", "deleted for a better one"
    with pytest.raises(TrimixError, match="checkpoint-5/sealed.json is damaged or gone"):
        checkpoints.check_best(tmp_path / "checkpoint-5")


@pytest.mark.parametrize("name", ["text.tokens", "held_out.jsonl", seals.SEAL])
def test_damaged_text_is_prepared_again(copy, finished, capsys, name):
    given, out = copy
    file = out / "cpt/data" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    train(given)
    assert f"{file} is damaged or missing: the text is prepared again" in capsys.readouterr().out
    assert difference(out, finished) == 0


def test_text_that_cannot_be_made_again_is_refused(copy, monkeypatch):
    given, out = copy
    (out / "cpt/data/text.tokens").write_bytes(b"")
    monkeypatch.setattr(packing, "_TYPE", "uint16")  # as if a newer version made something else
    with pytest.raises(TrimixError, match="is damaged, and what is made of the text now is"):
        train(given)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"a": 1}', None, "[" * 9999])
def test_a_damaged_record_of_the_run_is_refused(copy, content):
    given, out = copy
    file = out / "cpt/run.json"
    file.unlink()
    if content is not None:
        file.write_text(content)
    with pytest.raises(TrimixError, match="run.json is damaged or missing"):
        train(given)


def test_a_finished_model_that_is_damaged_is_named(finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "out")
    given = {**seals.read_record(finished / "cpt/run.json"), "output": str(tmp_path / "out")}
    given = {key: value for key, value in given.items() if key in Config.__dataclass_fields__}
    _into(tmp_path / "out", given)
    (tmp_path / "out" / "config.json").write_text("{}")
    train(given)
    assert (
        f"warning: {tmp_path / 'out' / 'config.json'} is not as it was" in capsys.readouterr().out
    )
    (tmp_path / "out/cpt/finished.json").write_text('{"step": 12}')
    with pytest.raises(TrimixError, match=r"finished.json is damaged"):
        train(given)


def test_what_a_run_depends_on_is_known_by_its_content(copy, tmp_path):
    """Files of the same size and time: text, held-out text, the base's tokenizer and weights."""
    given, out = copy
    text = Path(given["text"])
    base = Path(shutil.copytree(given["base"], tmp_path / "base"))
    run_record = out / "cpt/run.json"
    seals.write_record(run_record, {**seals.read_record(run_record), "base": str(base)})
    given = {**given, "base": str(base)}
    for file, named in (
        (text, "data.text"),
        (base / "tokenizer.json", "base files"),
        (base / "model.safetensors", "base files.digest"),
    ):
        before, stat = file.read_bytes(), file.stat()
        changed = before.replace(b"hen", b"den") if file == text else before.replace(b"Q", b"R", 1)
        if file.suffix == ".json":
            changed = before.replace(b'"use_regex": true', b'"use_regex":false')
        assert len(changed) == len(before) and changed != before
        file.write_bytes(changed)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        with pytest.raises(TrimixError, match=f"holds another run: .*{named}"):
            train(given)
        file.write_bytes(before)


def test_text_that_changes_while_it_is_read(small_base, tmp_path, monkeypatch):
    given = config(small_base, tmp_path)
    close = packing.Packer.close

    def changes(packer):
        text = Path(given["text"])
        text.write_text(text.read_text().replace("hen", "den"))
        close(packer)

    monkeypatch.setattr(packing.Packer, "close", changes)
    with pytest.raises(TrimixError, match="text.txt has changed while it was read"):
        train(given)
    assert not (tmp_path / "out/cpt/data").exists()
