"""Finished rows of an unfinished cell."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.runtime.journal import Journal

ROOT = Path(__file__).parents[2]


def test_a_torn_last_line_is_dropped(tmp_path):
    path = tmp_path / "deep" / "rows.jsonl"
    Journal(path).extend([{"a": 1}, {"a": 2}])
    Journal(path).extend([{"a": 0.1 + 0.2}])
    whole = path.read_bytes()
    for tail in (b'[{"a"', b'[{"a": 9}]', b"\xff\n", b"nonsense\n"):
        path.write_bytes(whole + tail)
        journal = Journal(path)
        assert journal.rows == [{"a": 1}, {"a": 2}, {"a": 0.1 + 0.2}]
        assert path.read_bytes() == whole
    journal.extend([{"a": 4}])
    assert Journal(path).rows[-1] == {"a": 4}


def test_a_changed_line_of_a_journal_is_done_again(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    for number in range(3):
        Journal(path).extend([{"document": number}])
    whole_file = path.read_bytes()
    lines = whole_file.splitlines(keepends=True)
    for place in range(len(lines[0]), len(lines[0]) + len(lines[1])):
        changed = bytearray(whole_file)
        changed[place] ^= 1
        path.write_bytes(changed)
        assert Journal(path).rows == [{"document": 0}]
        assert path.read_bytes() == lines[0]
    assert "rows.jsonl is damaged from byte" in capsys.readouterr().err


def test_one_process_at_a_time_writes_a_journal(tmp_path):
    path = tmp_path / "rows.jsonl"
    words = (
        "import sys; from pathlib import Path; from pipeline.runtime.journal import Journal;"
        "print(len(Journal(Path(sys.argv[1])).rows), flush=True)"
    )
    journal = Journal(path)
    other = subprocess.Popen(
        [sys.executable, "-c", words, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with pytest.raises(subprocess.TimeoutExpired):
        other.wait(2)
    journal.extend([{"a": 1}])
    del journal
    assert other.communicate()[0] == "1\n"
