"""What jobs write into their logs."""

import socket

from pipeline.runtime import progress
from pipeline.runtime.progress import Progress


def test_a_log_tells_machine_share_speed_and_time_left(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    counter = Progress("evaluate", 40, every=5.0)
    for _ in range(3):
        now[0] += 2
        counter.step("less: 2.5 nats")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"evaluate: 40 to do on {socket.gethostname()} (")
    assert lines[1:] == ["evaluate: 3/40, 0.5/s, 6 s spent, 74 s left  less: 2.5 nats"]


def test_the_last_unit_is_always_told(capsys):
    counter = Progress("dump", 2, every=1e9)
    counter.step()
    counter.step()
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("dump: 2/2, ")
