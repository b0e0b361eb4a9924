"""Compiled loops are kept by what they are made of, and by one process at a time."""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba.core import caching

from pipeline.ops.cpu import jit as loops

ROOT = Path(__file__).parents[3]
EXP = """
import numpy as np
from pipeline.ops.cpu.sums import exp
exp(np.float32(-1))
print(exp.stats.cache_hits[exp.signatures[0]] if exp.stats.cache_hits else 0)
"""


def test_compiled_code_is_kept_apart_by_the_code_of_its_helpers(tmp_path: Path) -> None:
    sources = tmp_path / "ops"
    sources.mkdir()
    (sources / "helper.py").write_text("x = 1\n")
    before = loops.cache_folder(sources)
    assert before.parent == sources / "__pycache__"
    assert loops.cache_folder(sources, "/elsewhere").parent == Path("/elsewhere")
    (sources / "helper.py").write_text("x = 2\n")
    assert loops.cache_folder(sources) != before


def test_copies_of_the_package_share_what_they_compile(tmp_path):
    """Wherever they lie and whenever they were written, as long as the loops are the same."""

    def loaded(name):
        copy = tmp_path / name
        (copy / "pipeline").mkdir(parents=True)
        for path in ("__init__.py", "errors.py", "policies.py", "ops"):
            source = ROOT / "pipeline" / path
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, copy / "pipeline" / path, ignore=ignored)
            else:
                shutil.copyfile(source, copy / "pipeline" / path)
        done = subprocess.run(
            [sys.executable, "-c", EXP], cwd=copy, capture_output=True, text=True, check=True,
            env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "kept"), "PYTHONPATH": str(copy)},
        )  # fmt: skip
        return int(done.stdout)

    assert [loaded(name) for name in ("first", "second")] == [0, 1]
    assert not list(tmp_path.glob("*/pipeline/ops/__pycache__/numba-*"))


def test_one_process_at_a_time_keeps_what_it_compiled(monkeypatch, tmp_path):
    """Two could give one number to the code of two signatures."""
    monkeypatch.setattr(loops, "FOLDER", tmp_path)
    saved, save = [], caching.IndexDataCacheFile.save

    def watched(cache, key, data):
        with (tmp_path / "lock").open() as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        saved.append(save(cache, key, data))

    monkeypatch.setattr(caching.IndexDataCacheFile, "save", watched)

    @loops.jit
    def double(x):
        return x + x

    assert double(2) == 4
    assert double(np.float32(2)) == 4
    assert len(saved) == 2
    assert len(list(tmp_path.glob("*.nbc"))) == 2


def test_a_folder_that_cannot_be_written_is_no_error(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setattr(loops, "FOLDER", tmp_path / "file" / "folder")

    @loops.jit
    def double(x):
        return x + x

    assert double(2) == 4
