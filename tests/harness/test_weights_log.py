"""The weights log where it cannot be written: at the first line, and in the middle of a run."""

import errno
import io
import json
import os

import pytest

from trimix_lm_eval.fusion.collectors import Choice
from trimix_lm_eval.fusion.weights import Weights
from trimix_lm_eval.harness import weights_log
from trimix_lm_eval.harness.weights_log import WeightsLog
from trimix_lm_eval.utils.errors import TrimixError

LINE = (("task", 1, 0, 0), "loglikelihood", Choice(Weights(0.1, 0.9)))


@pytest.mark.parametrize("path", ["/dev/full", "/proc/x", "~nosuchuser/\0", "/dev/null/x"])
def test_a_log_that_cannot_be_written(path):
    with pytest.raises(TrimixError, match="weights_log"):
        WeightsLog(path, 0, 1).write(*LINE)


@pytest.mark.parametrize(("before", "lines"), [("", 2), ('{"doc_id": 1}\n', 3), ('{"doc_i', 3)])
def test_a_line_that_was_cut_off_takes_none_with_it(tmp_path, before, lines):
    file = tmp_path / "log.jsonl"
    file.write_text(before)
    log = WeightsLog(str(file), 0, 1)
    log.write(*LINE)
    log.write(*LINE)
    found = file.read_text().splitlines()
    assert file.read_text().startswith(before) and len(found) == lines
    assert [json.loads(line)["alpha"] for line in found[-2:]] == [0.1, 0.1]


def test_a_pipe_that_nobody_reads(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TrimixError, match="cannot be written"):
        WeightsLog(str(tmp_path / "pipe"), 0, 1)


def test_a_disk_that_fills_up_costs_no_run(tmp_path, monkeypatch, caplog):
    class Disk(io.FileIO):
        """Takes 1.5 lines."""

        room = 330

        def write(self, data):
            if not self.room:
                raise OSError(errno.ENOSPC, "No space left on device")
            written = super().write(data[: self.room])
            self.room -= written
            return written

    monkeypatch.setattr(weights_log.io, "FileIO", Disk)
    log = WeightsLog(str(tmp_path / "log.jsonl"), 0, 1)
    for _ in range(5):
        log.write(*LINE)
    assert log.stream is None and caplog.text.count("make room on the disk") == 1
    lines = (tmp_path / "log.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == log.written and all(line.endswith("}\n") for line in lines)
    assert json.loads(lines[0])["alpha"] == 0.1
