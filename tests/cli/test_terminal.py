"""Standard streams that cannot take what is printed: closed, full, or of a small encoding."""

import io
import os
import subprocess
import sys

import pytest

from trimix_lm_eval import cli

COMMANDS = [
    *("check", "tasks", "sweep", "compare", "report", "explain", "export", "leaderboard", "cpt"),
    "new-language",
]
FULL = "/dev/full"
needs_full = pytest.mark.skipif(not os.path.exists(FULL), reason="there is no /dev/full here")


def code_of(words):
    """What the command returns, or ends the program with."""
    try:
        return cli.main(words)
    except SystemExit as stopped:
        return stopped.code


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
@pytest.mark.parametrize("words", [["--help"], ["tasks"], *([name, "--help"] for name in COMMANDS)])
def test_what_an_encoding_lacks_is_written_in_hexadecimal(monkeypatch, encoding, words):
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    assert code_of(words) == 0
    printed = sys.stdout.buffer.getvalue().decode(encoding)
    assert printed.startswith(("usage: ", "NAME "))
    if words == ["--help"]:
        assert ("…" if encoding == "cp1252" else "\\u2026" if encoding == "ascii" else "u2026") in (
            printed
        )


def test_half_characters_in_a_message(monkeypatch):
    """Names of files may hold bytes that are no text."""
    monkeypatch.setattr("sys.stderr", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    assert code_of(["tasks", "x\udcff"]) == 1
    sys.stderr.flush()
    assert b"'x\\udcff'" in sys.stderr.buffer.getvalue()


@needs_full
@pytest.mark.parametrize("buffering", [True, False])
@pytest.mark.parametrize("words", [["tasks"], ["--help"], ["--version"], ["explain", "--help"]])
def test_a_full_disk_is_one_message(monkeypatch, capsys, words, buffering):
    raw = open(FULL, "wb", buffering=-1 if buffering else 0)  # noqa: SIM115
    stream = io.TextIOWrapper(raw, encoding="utf-8", write_through=not buffering)
    monkeypatch.setattr("sys.stdout", stream)
    assert code_of(words) == 1
    said = "error: The output cannot be written: No space left on device.\n"
    assert capsys.readouterr().err == said


@needs_full
@pytest.mark.parametrize("words", [["nonsense"], ["tasks", "nonsense"]])
def test_errors_that_nobody_can_read(monkeypatch, words):
    monkeypatch.setattr("sys.stderr", open(FULL, "w", buffering=1))  # noqa: SIM115
    assert code_of(words) == 1


@pytest.mark.parametrize("words", [["tasks"], ["--help"]])
def test_a_reader_that_stops_ends_the_command_quietly(monkeypatch, capsys, words):
    read, write = os.pipe()
    os.close(read)
    monkeypatch.setattr("sys.stdout", os.fdopen(write, "w"))
    assert code_of(words) == 141
    assert capsys.readouterr().err == ""


def test_lm_eval_in_a_pipe(monkeypatch, capsys):
    """``trimix ls tasks | head -1``: lm-eval's own commands print, too."""
    import lm_eval.__main__

    read, write = os.pipe()
    os.close(read)
    monkeypatch.setattr("sys.stdout", os.fdopen(write, "w"))
    monkeypatch.setattr("sys.argv", ["trimix"])
    monkeypatch.setattr("sys.meta_path", list(sys.meta_path))
    monkeypatch.setattr(lm_eval.__main__, "cli_evaluate", lambda: print("x" * 100_000))
    assert code_of(["ls", "tasks"]) == 141
    assert capsys.readouterr().err == ""


def test_other_errors_of_files_keep_their_traceback(monkeypatch):
    def run(_):
        raise FileNotFoundError(2, "No such file", "x")

    monkeypatch.setattr(cli.tasks, "run", run)
    with pytest.raises(FileNotFoundError):
        code_of(["tasks"])


@pytest.mark.parametrize("streams", ["| true", ">&-", ">&- 2>&- <&-"])
def test_processes_whose_streams_are_closed(streams):
    command = f'"{sys.executable}" -m trimix_lm_eval --version {streams}; exit ${{PIPESTATUS[0]}}'
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert ran.returncode in ((0, 141) if "|" in streams else (0,))
    assert ran.stderr == ran.stdout == ""
