"""Who waits for a process that gives no sign of life ends, and names it; others are waited for."""

from __future__ import annotations

import threading
import time

import pytest
import torch.distributed as dist

from trimix_lm_eval.utils import distributed, heartbeat
from trimix_lm_eval.utils.errors import TrimixError
from trimix_lm_eval.utils.heartbeat import Heartbeat

LIMIT = 0.4


@pytest.fixture
def pair(monkeypatch):
    """The heartbeats of two processes, here in one; what would end the first; its store."""
    ended: list[str] = []
    monkeypatch.setattr(heartbeat, "_PERIOD", 0.05)
    monkeypatch.setattr(heartbeat, "_end", lambda error: ended.append(str(error)))
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    made: list[Heartbeat] = []
    other = threading.Thread(target=lambda: made.append(Heartbeat(1, 2, LIMIT)))
    other.start()
    made.insert(0, Heartbeat(0, 2, LIMIT))
    other.join()
    made.sort(key=lambda one: one._rank)
    yield made, ended
    for one in made:
        one.end()


def test_a_process_that_gives_signs_of_life_is_waited_for(pair):
    (mine, _), ended = pair
    with mine.watching():
        time.sleep(3 * LIMIT)
    assert not ended


def test_a_silent_process_is_named_and_ends_who_waits(pair):
    (mine, other), ended = pair
    other.end()
    time.sleep(2 * LIMIT)
    assert not ended, "nobody waits for it"
    with mine.watching():
        with mine.watching():  # as `collected` does
            time.sleep(LIMIT / 2)
        assert not ended
        time.sleep(LIMIT)
    assert "process 1 (" in ended[0] and "no sign of life for 0.4 seconds" in ended[0]
    assert "process 0" not in ended[0] and "--use_cache" in ended[0]


def test_a_store_that_does_not_answer_is_the_first_node_s(pair, monkeypatch):
    """It is stopped: requests are taken and not answered."""
    (mine, _), ended = pair
    monkeypatch.setattr(mine, "_read", lambda: time.sleep(4 * LIMIT) or mine._heard)
    with mine.watching():
        time.sleep(2 * LIMIT)
    assert ended[0].startswith("The node of process 0 of 2 (127.0.0.1)"), ended


@pytest.mark.parametrize(
    "error",
    [
        dist.DistBackendError("NCCL communicator was aborted"),
        RuntimeError(
            "[/a/gloo/pair.cc:553] Connection closed by peer [::1]:99. This is typical. x"
        ),
    ],
)
def test_an_error_of_torch_names_who_is_gone(pair, monkeypatch, error):
    (mine, other), _ = pair
    monkeypatch.setattr(distributed, "_heartbeat", mine)
    other.end()
    with pytest.raises(TrimixError) as told, distributed.watched(2):
        raise error
    what, hint = str(told.value).splitlines()
    assert what.startswith("Of 2 processes, process 1 (") and "has ended or cannot" in what
    assert "This is typical" not in what and "pair.cc" not in what and "checkpoint" in hint


def test_other_errors_stay_what_they_are(pair, monkeypatch):
    monkeypatch.setattr(distributed, "_heartbeat", pair[0][0])
    with pytest.raises(RuntimeError, match="^shape"), distributed.watched(2):
        raise RuntimeError("shape mismatch")


@pytest.mark.parametrize("given", ["0", "-1", "nan", "soon", "1e300", "10**4"])
def test_a_limit_that_is_none_is_refused(monkeypatch, given):
    monkeypatch.setenv("TRIMIX_PROCESS_TIMEOUT", given)
    with pytest.raises(TrimixError, match="TRIMIX_PROCESS_TIMEOUT"):
        heartbeat.limit()


def test_who_alone_has_started_ends(monkeypatch):
    ended: list[str] = []
    monkeypatch.setattr(heartbeat, "_START", 0.05)
    monkeypatch.setattr(heartbeat, "_end", lambda error: ended.append(str(error)))
    monkeypatch.setenv("WORLD_SIZE", "3")
    with heartbeat.patience():
        pass
    time.sleep(0.1)
    assert not ended
    with heartbeat.patience():
        time.sleep(0.2)
    assert ended[0].startswith("Not all of 3 processes have come")
