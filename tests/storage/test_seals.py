"""Damaged files, files of others and full disks: found, named, and made again."""

import os
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch

from pipeline import __main__
from pipeline.errors import DamagedError, DataError
from pipeline.kernels import get_kernel
from pipeline.runtime.journal import Journal
from pipeline.storage import disk as space
from pipeline.storage import seals
from pipeline.storage.features import layer_file
from pipeline.storage.files import load_sealed, load_table, save_sealed, save_table, whole
from pipeline.storage.seals import UNSEALED
from pipeline.storage.tensors import create_tensors, load_tensors, open_tensors, save_tensors
from pipeline.training.checkpoint import load_kernels, save_kernels
from pipeline.transformer import weights as models
from pipeline.transformer.shape import Heads
from pipeline.transformer.weights import materialise

ROOT = Path(__file__).parents[2]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- damaged files ---------------------------------------------------------------------------

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


# --- deleted, and made again -----------------------------------------------------------------


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


# --- files from elsewhere --------------------------------------------------------------------

HEADS, BUILD = Heads(4, 2, 8), {"kernel_size": 4, "hidden_size": 16}


def kernel(seed=0):
    return get_kernel("less", **vars(HEADS), **BUILD, seed=seed)


class Trap:
    def __reduce__(self):
        return os.mkdir, (os.environ["LESS_KV_TRAP"],)


def test_a_pickle_is_refused_and_does_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LESS_KV_TRAP", str(tmp_path / "sprung"))
    for name, save in (("pickle", pickle.dump), ("torch", torch.save)):
        path = tmp_path / f"{name}.safetensors"
        with path.open("wb") as file:
            save({"layers.0.s1": Trap()}, file)
        with pytest.raises(DataError, match="is no file that this project wrote"):
            load_kernels(path, HEADS, 1)
        parts = [str(path), "--curves", str(path), "--out", str(tmp_path / "k")]
        words = ["collect", "--kernels", *parts, "--curves-out", str(tmp_path / "c")]
        assert __main__.main(words) == 1
        assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"heads": {"num_heads": 4, "num_kv_heads": 10**9, "head_dim": 8}},
        {"heads": {"num_heads": 4, "num_kv_heads": 2}},
        {"heads": "many"},
        {"build": BUILD | {"hidden_size": 10**12}},
        {"build": BUILD | {"kernel_size": 10**6}},
        {"build": BUILD | {"unknown": 1}},
        {"build": [1]},
    ],
    ids=str,
)
def test_headers_that_lie_are_refused_before_anything_is_built(tmp_path, change):
    path = tmp_path / "k.safetensors"
    save_kernels(path, {0: kernel()}, "less", HEADS, BUILD)
    tensors, header = load_tensors(path, "kernels")
    header.pop("kind")
    save_tensors(path, tensors, "kernels", **(header | change))
    with pytest.raises(DataError, match="layer 0 does not fit its header"):
        load_kernels(path)


def test_headers_that_say_nothing_are_refused(tmp_path):
    save_tensors(tmp_path / "k", {"x": torch.ones(1)}, "kernels")
    with pytest.raises(DataError, match="does not say in its header"):
        load_kernels(tmp_path / "k")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_kernels_that_are_not_finite_are_neither_written_nor_read(tmp_path, value):
    broken, path = kernel(), tmp_path / "k"
    with torch.no_grad():
        broken.psi_w3[0, 0, 0] = value
    with pytest.raises(DataError, match=r"kernel of layer 0.* not finite; train it again"):
        save_kernels(path, {0: broken}, "less", HEADS, BUILD)
    assert not path.exists()
    save_kernels(path, {0: kernel()}, "less", HEADS, BUILD)
    tensors, header = load_tensors(path, "kernels")
    tensors["layers.0.s2"][0] = value
    header.pop("kind")
    save_tensors(path, tensors, "kernels", **header)
    with pytest.raises(DataError, match="layer 0 holds numbers that are not finite"):
        load_kernels(path)


# --- disks -----------------------------------------------------------------------------------


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
