"""Registries and hubs that fail: a local server that drops, refuses and gives other bytes."""

import json
import os
import threading
import zipfile
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pipeline.download import hub, packages, retry
from pipeline.errors import DamagedError, DataError
from pipeline.storage import seals
from pipeline.storage.files import sha256
from pipeline.text.documents import load_rows
from pipeline.transformer import weights as models
from pipeline.transformer.weights import byte_tokenizer, materialise

WEIGHTS = {
    "random": {"architecture": "llama", "hidden_size": 8, "intermediate_size": 8,
               "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
}  # fmt: skip


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- registries and hubs ---------------------------------------------------------------------


class Misbehaving(ThreadingHTTPServer):
    """Serves ``content`` by path; ``faults`` are what happens to the next bodies of ``target``."""

    def __init__(self):
        self.content, self.headers, self.faults, self.served = {}, {}, [], []
        self.target = None
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_HEAD(self):
                self.reply(body=False)

            def do_GET(self):
                self.reply(body=True)

            def reply(self, body):
                path = self.path.split("?")[0]
                if path not in server.content:
                    return self.send_error(404)
                content = server.content[path]
                faulty = body and path == server.target
                fault = server.faults.pop(0) if faulty and server.faults else None
                if faulty:
                    server.served.append(fault)
                if fault == "unavailable":
                    return self.send_error(503)
                if fault == "wrong":
                    content = bytes(len(content))
                self.send_response(200)
                for name, value in server.headers.get(path, {}).items():
                    self.send_header(name, value)
                is_json = content[:1] in (b"{", b"[")
                self.send_header("Content-Type", "application/json" if is_json else "text/html")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if body:
                    self.wfile.write(content[: len(content) // 2] if fault == "half" else content)
                if fault == "half":
                    self.close_connection = True

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def server(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.01)
    server = Misbehaving()
    yield server
    server.shutdown()
    server.server_close()


WHEEL = "/toy/toy-1.0-py3-none-any.whl"


@pytest.fixture
def registry(server, monkeypatch, tmp_path):
    """A registry with one package, and the table of packages that names it."""
    path = tmp_path / "wheel"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("toy/data.bin", b"data" * 10_000)
        wheel.writestr(
            "toy-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n"
        )
        wheel.writestr("toy-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("toy-1.0.dist-info/RECORD", "")
    server.content[WHEEL] = path.read_bytes()
    server.content["/simple/toy/"] = f'<a href="{WHEEL}">toy-1.0-py3-none-any.whl</a>'.encode()
    server.target = WHEEL
    with zipfile.ZipFile(path) as wheel:
        (tmp_path / "data").write_bytes(wheel.read("toy/data.bin"))
    toy = packages.Package("toy", "1.0", "toy.bin", sha256(tmp_path / "data"), "none", "a toy",
                           member="toy/data.bin")  # fmt: skip
    monkeypatch.setattr(packages, "packages", lambda: {"toy": toy})
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_RETRIES", "0")  # pip's own, which wait
    monkeypatch.setenv("PIP_RESUME_RETRIES", "0")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    return server


@pytest.mark.parametrize(
    "faults", [["unavailable", "unavailable"], ["half", "wrong"]], ids=["503 twice", "bad bodies"]
)
def test_a_registry_that_fails_twice_is_asked_again(registry, tmp_path, faults, capsys):
    registry.faults[:] = faults
    out = tmp_path / "downloads" / "toy.bin"
    packages.fetch("toy", out)
    assert packages.checked("toy", out).read_bytes() == b"data" * 10_000
    assert registry.served == [*faults, None]
    assert names(out.parent) == ["toy.bin"]
    assert "try 1 of 3: " in capsys.readouterr().err


def test_a_registry_that_gives_another_file_is_not_believed(registry, tmp_path, monkeypatch):
    toy = replace(packages.packages()["toy"], sha256="0" * 64)
    monkeypatch.setattr(packages, "packages", lambda: {"toy": toy})
    with pytest.raises(DataError, match=r"has SHA-256 .*, not 0{64}: the registry gave another"):
        packages.fetch("toy", tmp_path / "downloads" / "toy.bin")
    assert names(tmp_path / "downloads") == []
    assert registry.served == [None] * 3, "a bad file must not come from pip's cache again"


def test_a_registry_that_cannot_be_reached(registry, tmp_path, monkeypatch):
    registry.server_close()
    with pytest.raises(DataError, match=r"pip could not download toy==1\.0.*Check the network"):
        packages.fetch("toy", tmp_path / "downloads" / "toy.bin")
    assert names(tmp_path / "downloads") == []


COMMIT = "c" * 40


@pytest.fixture
def hub_model(server, monkeypatch, tmp_path):
    """A hub with one model; its weights are what faults are about."""
    import huggingface_hub

    made = tmp_path / "made"
    models.load_model(WEIGHTS).save_pretrained(made)
    byte_tokenizer().save_pretrained(made)
    tree = []
    for path in made.iterdir():
        content = path.read_bytes()
        large = path.suffix == ".safetensors"
        digest = sha256(path) if large else hub._git_sha1(path)
        entry = {"type": "file", "path": path.name, "size": len(content), "oid": digest[:40]}
        if large:
            entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
        tree.append(entry)
        where = f"/a/model/resolve/{COMMIT}/{path.name}"
        server.content[where] = content
        server.headers[where] = {"X-Repo-Commit": COMMIT, "ETag": f'"{digest}"'}
        if large:
            server.target = where
            server.headers[where] |= {"X-Linked-Etag": f'"{digest}"',
                                      "X-Linked-Size": str(len(content))}  # fmt: skip
    info = {"id": "a/model", "sha": COMMIT, "siblings": [{"rfilename": x["path"]} for x in tree]}
    for revision in ("main", COMMIT):
        server.content[f"/api/models/a/model/revision/{revision}"] = json.dumps(info).encode()
        server.content[f"/api/models/a/model/tree/{revision}"] = json.dumps(tree).encode()
    server.content["/api/models/a/model"] = json.dumps(info).encode()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        models, "snapshot_download",
        partial(huggingface_hub.snapshot_download, endpoint=server.url, cache_dir=tmp_path / "hub",
                max_workers=1),
    )  # fmt: skip
    return server


@pytest.mark.parametrize(
    "faults", [["unavailable", "unavailable"], ["half", "wrong"]], ids=["503 twice", "bad bodies"]
)
def test_a_hub_that_fails_twice_is_asked_again(hub_model, tmp_path, faults):
    hub_model.faults[:] = faults
    materialise({"hub": "a/model"}, tmp_path / "model")
    assert models.load_model(tmp_path / "model").config.hidden_size == 8
    assert hub_model.served[: len(faults)] == faults
    made = (tmp_path / "made" / "model.safetensors").read_bytes()
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == made


def test_a_hub_that_always_gives_other_bytes_is_not_believed(hub_model, tmp_path):
    hub_model.faults[:] = ["wrong"] * 9
    with pytest.raises(DataError, match=r"cannot get the model 'a/model'.*model\.safetensors in t"):
        materialise({"hub": "a/model"}, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    assert hub_model.served == ["wrong"] * retry.TRIES
    assert not list((tmp_path / "hub").rglob("snapshots/*/model.safetensors"))
    hub_model.faults.clear()
    materialise({"hub": "a/model"}, tmp_path / "model")


def test_damage_in_the_hubs_cache_is_found_and_downloaded_again(hub_model, tmp_path):
    materialise({"hub": "a/model"}, tmp_path / "model")
    made = tmp_path / "made"
    for name in ("model.safetensors", "config.json"):
        cached = (tmp_path / "model" / name).resolve()
        cached.write_bytes(bytes(len(cached.read_bytes())))
        with pytest.raises(DamagedError, match=name):
            models.load_model(tmp_path / "model")
        seals.remove(tmp_path / "model")
        materialise({"hub": "a/model"}, tmp_path / "model")
        assert (tmp_path / "model" / name).read_bytes() == (made / name).read_bytes()


def test_a_hub_that_cannot_be_reached(hub_model, tmp_path, capsys):
    hub_model.server_close()
    with pytest.raises(DataError, match=r"cannot get the model 'a/model'.*folder: PATH"):
        materialise({"hub": "a/model"}, tmp_path / "model")
    assert "try 2 of 3" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_a_model_that_the_hub_does_not_have_is_asked_for_once(hub_model, tmp_path, capsys):
    with pytest.raises(DataError, match="cannot get the model 'a/other'"):
        materialise({"hub": "a/other"}, tmp_path / "model")
    assert "try" not in capsys.readouterr().err


def test_a_data_set_of_a_hub_that_fails_twice(monkeypatch):
    import datasets

    answers = iter([ConnectionError("reset"), TimeoutError(), [{"text": "one"}], ValueError("no")])

    def load_dataset(*args, **kwargs):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0)
    spec = {"source": "hub", "path": "a/texts", "split": "train"}
    assert load_rows(spec) == [{"text": "one"}]
    with pytest.raises(DataError, match="cannot read the data set 'hub a/texts train': no"):
        load_rows(spec)
