"""Damaged files, files of others and full disks: found, named, and made again."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from pipeline import __main__
from pipeline.errors import DamagedError
from pipeline.storage import seals
from pipeline.storage.features import layer_file
from pipeline.storage.files import load_sealed, load_table, save_sealed, save_table, whole
from pipeline.storage.seals import UNSEALED
from pipeline.storage.tensors import create_tensors, load_tensors, open_tensors, save_tensors
from pipeline.transformer import weights as models
from pipeline.transformer.weights import materialise

ROOT = Path(__file__).parents[2]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


TABLE = pd.DataFrame({"document": ["a", "b", None], "nll": [1.5, float("nan"), 3.0]})

VALUE = {"samples": [{"prompt": "é"}], "seed": 0}


def filled(path):
    with create_tensors(path, {"q": (torch.float16, (3, 2))}, "features") as tensors:
        tensors["q"].fill_(1.5)


FORMS = {
    "tensors": (
        lambda path: save_tensors(path, {"x": torch.arange(6.0)}, "samples", seed=1),
        lambda path: load_tensors(path, "samples"),
    ),
    "filled": (filled, lambda path: load_tensors(path, "features")),
    "table": (lambda path: save_table(path, TABLE), load_table),
    "json": (lambda path: save_sealed(path, VALUE), load_sealed),
}


@pytest.fixture(params=FORMS)
def form(request, tmp_path):
    """A file of each form: its path and how it is read."""
    write, read = FORMS[request.param]
    path = tmp_path / "file"
    write(path)
    return path, read


def test_files_come_back_and_are_the_same_each_time(form, tmp_path):
    path, read = form
    before = path.read_bytes()
    assert UNSEALED.encode() not in before
    read(path)
    assert path.read_bytes() == before
    other = tmp_path / "other"
    next(write for write, its in FORMS.values() if its is read)(other)
    assert other.read_bytes() == before


def test_a_flipped_bit_is_seen_wherever_it_is(form):
    path, read = form
    content = path.read_bytes()
    for place in range(0, len(content), 1 + len(content) // 1000):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(DamagedError, match=r"/file is damaged \(.*make it again") as caught:
            read(path)
        assert caught.value.output == path


def test_a_cut_or_empty_file_is_seen(form):
    path, read = form
    content = path.read_bytes()
    for length in {0, 1, 7, 8, 9, len(content) // 2, len(content) - 9, len(content) - 1}:
        path.write_bytes(content[:length])
        with pytest.raises(DamagedError, match="/file is damaged"):
            read(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(DamagedError, match="/file is damaged"):
        read(path)


def test_a_file_of_features_falls_with_its_folder(tmp_path):
    path = layer_file(tmp_path / "part0", 3)
    path.parent.mkdir()
    filled(path)
    path.write_bytes(path.read_bytes()[:-1])
    with (
        pytest.raises(DamagedError) as caught,
        open_tensors(path, "features", path.parent),
    ):
        pass
    assert caught.value.output == path.parent


def test_every_file_of_a_models_folder_is_checked(tmp_path):
    weights = {
        "random": {"architecture": "llama", "hidden_size": 8, "intermediate_size": 8,
                   "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    }  # fmt: skip
    folder = tmp_path / "model"
    materialise(weights, folder)
    assert models.load_model(folder).config.hidden_size == 8
    for name in names(folder):
        path = folder / name
        content = path.read_bytes()
        path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
        with pytest.raises(DamagedError, match=name) as caught:
            models.load_model(folder)
        assert caught.value.output == folder
        path.write_bytes(content)
    (folder / "model.safetensors").write_bytes(b"")
    models.load_tokenizer(folder)  # which does not read the weights
    (folder / "model.safetensors").unlink()
    with pytest.raises(DamagedError, match="missing"):
        models.load_model(folder)


def test_a_damaged_file_is_marked_then_deleted_by_the_next_run(tmp_path, capsys):
    cells, out = tmp_path / "cells.parquet", tmp_path / "examples.html"
    words = ["examples", "--cells", str(cells), "--out", str(out)]
    save_table(cells, TABLE)
    cells.write_bytes(cells.read_bytes()[:-1])
    for _ in range(2):  # as when a job is tried again at once
        assert __main__.main(words) == 1
        said = capsys.readouterr().err
        assert f"error: {cells} is damaged (" in said
        assert f"make it again. The next run does: {cells}.damaged marks it." in said
        assert names(tmp_path) == ["cells.parquet", "cells.parquet.damaged"]
    for _ in range(2):  # planned twice
        seals.discard_marked(tmp_path)
        assert names(tmp_path) == []
    save_table(cells, TABLE)
    seals.discard_marked(tmp_path)
    assert names(tmp_path) == ["cells.parquet"]


def test_a_mark_goes_with_the_next_writing(tmp_path):
    seals.mark_of(tmp_path / "cells.parquet").touch()
    save_table(tmp_path / "cells.parquet", TABLE)
    assert names(tmp_path) == ["cells.parquet"]


def test_a_folder_is_deleted_as_one(tmp_path):
    (tmp_path / "deep" / "part0").mkdir(parents=True)
    (tmp_path / "deep" / "part0" / "0").write_text("a")
    (tmp_path / "deep" / "part1").touch()
    seals.mark_of(tmp_path / "deep" / "part0").touch()
    seals.discard_marked(tmp_path)
    assert names(tmp_path / "deep") == ["part1"]


def test_what_is_given_to_generate_is_not_marked(tmp_path, capsys):
    weights = {"random": {"architecture": "llama", "hidden_size": 8, "intermediate_size": 8,
                          "num_hidden_layers": 1, "num_attention_heads": 2}}  # fmt: skip
    materialise(weights, tmp_path / "model")
    kernels = tmp_path / "mine.safetensors"
    kernels.write_bytes(b"")
    words = ["generate", "--model", str(tmp_path / "model"), "--policy", "h2o", "--budget", "4",
             "--kernels", str(kernels), "--prompt", "a"]  # fmt: skip
    assert __main__.main(words) == 1
    assert "mine.safetensors is damaged" in capsys.readouterr().err
    assert names(tmp_path) == ["mine.safetensors", "model"]


def test_what_a_killed_writer_left_goes_with_the_next_one(tmp_path):
    path = tmp_path / "out.json"
    words = (
        "import os, signal, sys; from pipeline.storage.files import whole\n"
        "with whole(sys.argv[1]) as partial:\n"
        "    partial.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", words, str(path)], cwd=ROOT)
    assert len(names(tmp_path)) == 1
    with whole(path) as mine:  # which lives, as the next writer sees
        mine.write_text("mine")
        assert names(tmp_path) == [mine.name]
        with whole(path.with_name("out.json2")) as other:
            other.write_text("other")
        assert mine.exists()
    assert names(tmp_path) == ["out.json", "out.json2"]
