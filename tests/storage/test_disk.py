"""Disks that are full, or fill."""

import subprocess
from functools import partial

import pandas as pd
import pytest
import torch

from pipeline import __main__
from pipeline.errors import DataError
from pipeline.runtime.journal import Journal
from pipeline.storage import disk as space
from pipeline.storage.files import save_sealed, save_table
from pipeline.storage.tensors import create_tensors, load_tensors, save_tensors
from pipeline.transformer.weights import materialise


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(words, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if done.returncode:
        pytest.skip(f"mounting is not permitted: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_space_is_looked_at_and_some_is_left(small_disk):
    disk = small_disk / "not" / "there" / "yet"
    space.require_space(disk, 7 * 2**20, "less")
    for need in (7.8 * 2**20, 9 * 2**20):  # the last twentieth stays free
        with pytest.raises(DataError, match=r"GiB are needed in .*disk, where 0\.007812 GiB are f"):
            space.require_space(disk, int(need), "or less")


@pytest.fixture(scope="module")
def dumping(tmp_path_factory):
    """Words of a dump that takes 4.6 MiB, but for where it goes."""
    folder = tmp_path_factory.mktemp("dump")
    weights = {
        "random": {"architecture": "llama", "hidden_size": 32, "intermediate_size": 8,
                   "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
    }  # fmt: skip
    materialise(weights, folder / "model")
    tokens = torch.randint(0, 256, (50, 250), generator=torch.Generator().manual_seed(0))
    save_tensors(folder / "samples", {"tokens": tokens.int()}, "samples")
    return ["dump", "--model", str(folder / "model"), "--samples", str(folder / "samples"),
            "--layers", "0", "2", "--batch-size", "25", "--out"]  # fmt: skip


def test_a_dump_that_does_not_fit_does_not_begin(small_disk, dumping, capsys):
    with (small_disk / "other").open("wb") as other:
        other.write(b"0" * 4 * 2**20)
    assert __main__.main([*dumping, str(small_disk / "part0")]) == 1
    said = capsys.readouterr().err
    assert "0.004478 GiB are needed in " in said
    assert "0.003906 GiB are free" in said
    assert "make room, or lower `dump.layers_per_job`" in said
    assert names(small_disk) == ["other"]


@pytest.mark.parametrize("when", ["allocated", "sealed"])
def test_a_disk_that_fills_in_the_middle_of_a_dump(small_disk, dumping, monkeypatch, capsys, when):
    """Something else takes the room after it was looked at; once it is gone the dump goes on."""
    other, out = small_disk / "other", small_disk / "part0"
    fill = partial(other.write_bytes, b"0" * 4 * 2**20)

    def filled_first(path, *args, **kwargs):
        fill()
        return create_tensors(path, *args, **kwargs)

    def no_room(path):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        if when == "allocated":
            patched.setattr("pipeline.transformer.features.create_tensors", filled_first)
        else:
            patched.setattr("pipeline.storage.tensors.seal", no_room)
        assert __main__.main([*dumping, str(out)]) == 1
    assert f"error: cannot write {out}: No space left on device." in capsys.readouterr().err
    assert [name for name in names(small_disk) if name != "other"] == []
    other.unlink(missing_ok=True)
    assert __main__.main([*dumping, str(out)]) == 0
    assert names(out) == ["layer000.safetensors", "layer001.safetensors"]
    for path in out.iterdir():
        assert load_tensors(path, "features")[0]["q"].isfinite().all()


@pytest.mark.parametrize(
    "write",
    [
        lambda path: save_tensors(path, {"x": torch.zeros(4 * 2**20)}, "features"),
        lambda path: save_table(path, pd.DataFrame({"x": torch.rand(2**21).numpy()})),
        lambda path: save_sealed(path, {"x": "a" * 2**24}),
        lambda path: Journal(path).extend([{"x": "a" * 2**24}]),
    ],
    ids=["tensors", "table", "json", "journal"],
)
def test_a_full_disk_is_a_plain_error_of_every_writer(small_disk, write):
    with pytest.raises(DataError, match=r"cannot (write|use) .*/out: .*No space left"):
        write(small_disk / "out")
    assert set(names(small_disk)) <= {"out"}
    if (small_disk / "out").exists():  # a journal's torn line
        assert Journal(small_disk / "out").rows == []
