"""The miniature's training: rows and what they are judged by, written heads, resuming."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.slow


def test_the_loss_looks_at_answers_and_their_ends(words):
    from streams import IGNORED, Documents

    stream = Documents(words, [["ask: one", " two three", "\n\nask: four", " five"]])
    ids, labels = stream.row(64, torch.Generator().manual_seed(0))
    judged = [i if label != IGNORED else None for i, label in zip(ids, labels, strict=True)]
    assert all(label in (IGNORED, i) for i, label in zip(ids, labels, strict=True))
    text = words.decode([int(i) for i in judged if i is not None])
    assert text.startswith(" two three\n\n five</s>") and "ask" not in text


def test_what_comes_again_is_judged(words):
    from streams import IGNORED, Repeats, Running

    stream = Repeats([Running(words, ["ab cd ef gh " * 40])], (300, 400))
    ids, labels = stream.row(200, torch.Generator().manual_seed(0))
    seen = [i for i in range(200) if labels[i] != IGNORED]
    assert 40 < len(seen) < 160
    for i in seen:
        assert labels[i] == ids[i] and ids[i] in ids[:i]


def untrained(words):
    import training
    from recipe import EXPERIMENT

    torch.manual_seed(0)
    return training.build(EXPERIMENT.shapes["small"], words).eval()


def test_heads_that_are_written_copy_before_any_training(words):
    import copying

    model = untrained(words)
    assert copying.accuracy(model) < 0.05
    copying.write_heads(model)
    # A token has several successors here: who looks for one token only is right in half of them.
    assert copying.accuracy(model, kinds=60) > 0.75
    assert copying.accuracy(model, kinds=400) > 0.85


def test_training_goes_on_where_it_was_ended(words, corpora, tmp_path, monkeypatch):
    import training
    from recipe import Shape, Stage
    from streams import Running

    stage = Stage(6, 1e-2, {"en": 1.0}, warmup=2, batch=128, length=64)
    streams = {"en": Running(words, corpora["en"].base)}
    shape = Shape(2, 32, 64, 2, 16)

    def trained(*ended):
        torch.manual_seed(0)
        model = training.build(shape, words)
        for after in ended:
            monkeypatch.setattr(training, "_EVERY", -1.0)  # after every step

            def draw(*how, left=[after], real=training.draw):  # noqa: B006
                if not left[0]:
                    raise KeyboardInterrupt
                left[0] -= 1
                return real(*how)

            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(training, "draw", draw)
                training.train(model, "a", stage, streams, 5, tmp_path)
            assert (tmp_path / training.STATE).exists()
            torch.manual_seed(1)
            model = training.build(shape, words)  # nothing of it counts
        training.train(model, "a", stage, streams, 5, tmp_path)
        assert not (tmp_path / training.STATE).exists()
        return model.state_dict()

    whole, ended = trained(), trained(2, 3)
    assert all(torch.equal(whole[name], ended[name]) for name in whole)
