import hashlib
import json
import os
import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

import pipeline
from pipeline.errors import DamagedError, DataError
from pipeline.storage.files import (
    load_json,
    load_measured,
    load_table,
    save_json,
    save_table,
    sha256,
    whole,
    whole_folder,
)
from pipeline.storage.tensors import create_tensors, load_tensors, open_tensors, save_tensors


def names(folder):
    return sorted(p.name for p in folder.iterdir())


# --- whole or absent -------------------------------------------------------------------------


def test_whole_makes_folders_and_renames_at_the_end(tmp_path):
    target = tmp_path / "a" / "b" / "out.txt"
    with whole(target) as partial:
        partial.write_text("done")
        assert not target.exists()
        assert partial.parent == target.parent  # a rename, never a copy across file systems
    assert target.read_text() == "done"
    assert names(target.parent) == ["out.txt"]


def write_half_then(path, error):
    with whole(path) as partial:
        partial.write_text("half")
        assert partial.exists()
        raise error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_whole_leaves_nothing_behind_on_exceptions(tmp_path, error):
    with pytest.raises(error):
        write_half_then(tmp_path / "out.txt", error)
    assert names(tmp_path) == []


def test_whole_keeps_the_older_file_on_exceptions(tmp_path):
    target = tmp_path / "out.txt"
    target.write_text("older")
    with pytest.raises(RuntimeError):
        write_half_then(target, RuntimeError)
    assert target.read_text() == "older"
    assert names(tmp_path) == ["out.txt"]


def test_whole_reports_a_full_disk_by_name(tmp_path):
    with pytest.raises(DataError, match=r"cannot write .*out\.txt: No space left"):
        write_half_then(tmp_path / "out.txt", OSError(28, "No space left on device"))
    assert names(tmp_path) == []


def test_whole_flushes_to_disk_before_it_renames(tmp_path, monkeypatch):
    done = []
    for name in ("fsync", "replace"):
        call = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *args, call=call, name=name: (done.append(name), call(*args))[1]
        )
    save_json(tmp_path / "out.json", 1)
    assert done == ["fsync", "replace"]


def test_whole_reports_a_block_that_wrote_nothing(tmp_path):
    with pytest.raises(DataError, match=r"cannot write .*out\.txt"), whole(tmp_path / "out.txt"):
        pass
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["file/out.json", "x" * 300], ids=["under a file", "too long"])
def test_whole_reports_a_place_that_cannot_be_written(tmp_path, name):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot write"):
        save_json(tmp_path / name, 1)
    assert names(tmp_path) == ["file"]


def test_failed_saves_leave_nothing_behind(tmp_path):
    with pytest.raises(TypeError):
        save_json(tmp_path / "out.json", {"not": object()})
    with pytest.raises(TypeError):
        save_tensors(tmp_path / "out.safetensors", {"x": torch.zeros(1)}, "kind", bad=object())
    assert names(tmp_path) == []


# --- folders ---------------------------------------------------------------------------------


def fill_half_then(path, error):
    with whole_folder(path) as partial:
        (partial / "1").write_text("new")
        raise error


def test_whole_folder_replaces_the_older_one_at_the_end(tmp_path):
    target = tmp_path / "a" / "features"
    for name in ("old", "new"):
        with whole_folder(target) as partial:
            (partial / name).write_text(name)
            assert not (target / name).exists()
        assert names(target) == [name]
    assert names(target.parent) == ["features"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_whole_folder_leaves_nothing_behind_on_exceptions(tmp_path, error):
    with pytest.raises(error):
        fill_half_then(tmp_path / "features", error)
    assert names(tmp_path) == []


def test_whole_folder_keeps_the_older_one_on_exceptions(tmp_path):
    target = tmp_path / "features"
    with whole_folder(target) as partial:
        (partial / "0").write_text("older")
    with pytest.raises(DataError, match=r"cannot write .*features: No space left"):
        fill_half_then(target, OSError(28, "No space left on device"))
    assert names(tmp_path) == ["features"]
    assert names(target) == ["0"]


# --- tensors ---------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "features.safetensors"
    tensors = {"x": torch.arange(6.0).view(2, 3).T, "n": torch.tensor(3, dtype=torch.int32)}
    save_tensors(path, tensors, "features", shape=[2, 3], note="é")
    return path


def test_tensors_come_back_with_their_header(saved):
    tensors, header = load_tensors(saved, "features")
    assert header == {"kind": "features", "shape": [2, 3], "note": "é"}
    torch.testing.assert_close(tensors["x"], torch.arange(6.0).view(2, 3).T)
    assert tensors["n"].dtype == torch.int32
    with open_tensors(saved, "features") as (handle, _):
        assert handle.get_slice("x")[1:2].tolist() == [[1.0, 4.0]]


def test_half_types_survive(tmp_path):
    tensors = {str(d): torch.tensor([1.5, -2.0], dtype=d) for d in (torch.half, torch.bfloat16)}
    save_tensors(tmp_path / "h", tensors, "features")
    for name, value in load_tensors(tmp_path / "h", "features")[0].items():
        assert str(value.dtype) == name
        assert value.tolist() == [1.5, -2.0]


def test_missing_tensors_name_the_file(tmp_path):
    with pytest.raises(DataError, match=r"absent\.safetensors does not exist"):
        load_tensors(tmp_path / "absent.safetensors", "features")


def test_truncated_tensors_name_the_file(saved):
    """Cut anywhere: in the length, the header, the data."""
    data = saved.read_bytes()
    for keep in [0, 1, 7, 8, 9, len(data) // 2, len(data) - 1]:
        saved.write_bytes(data[:keep])
        with pytest.raises(DataError, match=r"features\.safetensors is damaged"):
            load_tensors(saved, "features")


def test_tensors_of_another_kind_name_the_file(saved):
    with pytest.raises(DataError, match=r"features\.safetensors should hold kernels, but is feat"):
        load_tensors(saved, "kernels")


def test_tensors_without_our_header_name_the_file(tmp_path):
    path = tmp_path / "foreign.safetensors"
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(DamagedError, match=r"foreign\.safetensors .* no file that this project wr"):
        load_tensors(path, "features")


@pytest.mark.parametrize("header", ["{", "[]", "3"])
def test_tensors_with_a_broken_header_name_the_file(tmp_path, header):
    path = tmp_path / "broken.safetensors"
    save_file({"x": torch.zeros(2)}, path, {"less": header})
    with pytest.raises(DataError, match=r"broken\.safetensors"):
        load_tensors(path, "features")


@pytest.mark.parametrize("text", [b"not a tensor file", b"PK\x03\x04" * 40, b"\x80\x02}q\x00."])
def test_other_files_are_not_read_as_tensors(tmp_path, text):
    path = tmp_path / "model.pt"
    path.write_bytes(text)
    with pytest.raises(DataError, match=r"model\.pt is damaged"):
        load_tensors(path, "features")


def test_a_folder_is_not_a_tensor_file(tmp_path):
    with pytest.raises(DataError, match=re.escape(str(tmp_path))):
        load_tensors(tmp_path, "features")


def test_a_disk_that_fills_while_tensors_are_written(tmp_path):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(DataError, match=r"cannot write .*big\.safetensors"):
            save_tensors(tmp_path / "big.safetensors", {"x": torch.zeros(10**6)}, "features")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == []


def test_tensors_filled_piece_by_piece_come_back(tmp_path):
    path = tmp_path / "big.safetensors"
    form = {"q": (torch.float16, (3, 2)), "k": (torch.bfloat16, (3, 2)), "n": (torch.float32, (3,))}
    with create_tensors(path, form, "features", layer=4) as tensors:
        for i in range(3):
            for value in tensors.values():
                value[i] = i + 0.5
    tensors, header = load_tensors(path, "features")
    assert header == {"kind": "features", "layer": 4}
    assert {name: (x.dtype, tuple(x.shape)) for name, x in tensors.items()} == form
    assert tensors["q"][:, 1].tolist() == tensors["k"][:, 0].tolist() == [0.5, 1.5, 2.5]
    assert tensors["n"].tolist() == [0.5, 1.5, 2.5]


def test_sizes_of_any_parity_can_be_filled(tmp_path):
    form = {"odd": (torch.float16, (3,)), "wide": (torch.float32, (2,))}
    with create_tensors(tmp_path / "x.safetensors", form, "features") as tensors:
        tensors["odd"].fill_(1)
        tensors["wide"].fill_(2)
    tensors, _ = load_tensors(tmp_path / "x.safetensors", "features")
    assert tensors["odd"].tolist() == [1, 1, 1]
    assert tensors["wide"].tolist() == [2, 2]


# --- tables ----------------------------------------------------------------------------------


def test_a_measured_table_says_what_it_measures(tmp_path):
    path, rows = tmp_path / "t.parquet", pd.DataFrame({"nll": [1.5]})
    save_table(path, rows, kind="perplexity")
    table, kind = load_measured(path)
    assert kind == "perplexity"
    assert table.equals(rows)
    save_table(path, rows)
    with pytest.raises(DataError, match="does not say what it measures"):
        load_measured(path)


def test_tables_come_back(tmp_path):
    table = pd.DataFrame({"policy": ["h2o", "tova"], "value": [1.5, None]})
    save_table(tmp_path / "t.parquet", table)
    pd.testing.assert_frame_equal(load_table(tmp_path / "t.parquet"), table)
    assert names(tmp_path) == ["t.parquet"]


def test_missing_tables_name_the_file(tmp_path):
    with pytest.raises(DataError, match=r"absent\.parquet does not exist"):
        load_table(tmp_path / "absent.parquet")


def test_truncated_tables_name_the_file(tmp_path):
    path = tmp_path / "t.parquet"
    save_table(path, pd.DataFrame({"value": range(100)}))
    data = path.read_bytes()
    for keep in [0, 3, len(data) // 2, len(data) - 1]:
        path.write_bytes(data[:keep])
        with pytest.raises(DataError, match=r"t\.parquet is damaged"):
            load_table(path)


# --- JSON ------------------------------------------------------------------------------------


def test_json_comes_back(tmp_path):
    value = {"b": [1, 2.5, None], "a": "é"}
    save_json(tmp_path / "v.json", value)
    assert load_json(tmp_path / "v.json") == value
    save_json(tmp_path / "same.json", dict(reversed(value.items())))
    assert sha256(tmp_path / "v.json") == sha256(tmp_path / "same.json")  # keys are sorted
    assert names(tmp_path) == ["same.json", "v.json"]


def test_missing_json_names_the_file(tmp_path):
    with pytest.raises(DataError, match=r"absent\.json does not exist"):
        load_json(tmp_path / "absent.json")


@pytest.mark.parametrize("data", [b"", b'{"a": 1', b"\xff\xfe\x00"], ids=["empty", "cut", "binary"])
def test_damaged_json_names_the_file(tmp_path, data):
    (tmp_path / "v.json").write_bytes(data)
    with pytest.raises(DataError, match=r"v\.json is damaged"):
        load_json(tmp_path / "v.json")


def test_a_folder_is_not_json(tmp_path):
    with pytest.raises(DataError, match=re.escape(str(tmp_path))):
        load_json(tmp_path)


def test_digest_is_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc" * 100_000)
    assert sha256(tmp_path / "x") == hashlib.sha256(b"abc" * 100_000).hexdigest()


# --- nothing runs what it reads --------------------------------------------------------------

FORBIDDEN = re.compile(
    r"import pickle|from pickle|\bpickle\.|torch\.load\b|(?<![\w.])eval\(|(?<![\w.])exec\("
    r"|shell\s*=\s*True|os\.system|allow_pickle\s*=\s*True|\.read_pickle|weights_only\s*=\s*False"
    r"|\byaml\.(unsafe_)?load\(|\b(?:import|from) (?:joblib|dill|cloudpickle|marshal|shelve)\b"
)


def forbidden_lines(folder):
    return [
        f"{path.name}:{number}: {line.strip()}"
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".py", ".smk")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if FORBIDDEN.search(line)
    ]


def test_nothing_in_the_package_runs_what_it_reads():
    folder = Path(pipeline.__file__).parent
    assert len(list(folder.rglob("*.py"))) > 10
    for name in ("pipeline", "benchmarks", "workflow"):
        assert forbidden_lines(folder.parent / name) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "x = torch.load(p)",
        "eval(x)",
        "run(c, shell=True)",
        "yaml.load(f)",
        "from joblib import load",
    ],
)
def test_the_search_finds_what_it_looks_for(tmp_path, line):
    (tmp_path / "bad.py").write_text(f"model.eval()\n{line}\n")
    assert forbidden_lines(tmp_path) == [f"bad.py:2: {line}"]


def test_headers_are_plain_json(saved):
    """Readable without this project, or any: eight bytes of length, then JSON."""
    data = saved.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert json.loads(header["__metadata__"]["less"])["kind"] == "features"
