import os
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline
from pipeline.__main__ import STEPS, main

ROOT = Path(__file__).parent.parent


def exit_code(words):
    with pytest.raises(SystemExit) as caught:
        main(words)
    return caught.value.code


def test_every_step_has_a_module_and_every_module_a_step():
    found = {path.stem for path in (ROOT / "pipeline" / "steps").glob("[!_]*.py")}
    assert found == set(STEPS)


def test_version(capsys):
    assert exit_code(["--version"]) == 0
    assert capsys.readouterr().out.strip() == pipeline.__version__


def test_help_names_every_step(capsys):
    assert exit_code(["--help"]) == 0
    text = capsys.readouterr().out
    for step, about in STEPS.items():
        assert step in text
        assert " ".join(about.split()) in " ".join(text.split())


@pytest.mark.parametrize("step", STEPS)
def test_help_of_a_step(capsys, step):
    assert exit_code([step, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"less-kv {step}" in text
    assert "--" in text.replace("--help", "") or "positional arguments:" in text


def test_help_imports_nothing_heavy():
    script = (
        "import sys\nfrom pipeline.__main__ import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'transformers', 'numba', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True)


def test_an_unknown_step(capsys):
    assert exit_code(["trian"]) == 2
    assert "invalid choice: 'trian'" in capsys.readouterr().err


def test_no_step(capsys):
    assert exit_code([]) == 2


def test_wrong_json(capsys):
    words = ["collect", "--kernels", "a", "--curves", "b", "--out", "c", "--curves-out", "d"]
    assert exit_code([*words, "--label", "{bad"]) == 2
    assert "--label" in capsys.readouterr().err


def test_errors_for_people_are_one_line(capsys, tmp_path):
    words = ["--cells", str(tmp_path / "none.parquet"), "--experiment", "e", "--config-hash", "h"]
    assert main(["tabulate", *words, "--out", str(tmp_path / "tidy.parquet")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "none.parquet does not exist" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "tidy.parquet").exists()


def test_mistakes_of_ours_are_not_hidden(monkeypatch, tmp_path):
    from pipeline.steps import tabulate

    def broken(args):
        raise ZeroDivisionError

    monkeypatch.setattr(tabulate, "run", broken)
    with pytest.raises(ZeroDivisionError):
        main(["tabulate", "--cells", "a", "--experiment", "e", "--config-hash", "h", "--out", "o"])


def test_threads_are_set_before_the_step_runs(monkeypatch):
    import torch

    from pipeline.steps import fetch

    seen = []
    monkeypatch.setattr(fetch, "run", lambda args: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # so that the change of it is undone
    try:
        assert main(["--threads", "1", "fetch", "--package", "aclsum", "--out", "x"]) == 0
        assert os.environ["OMP_NUM_THREADS"] == "1"
    finally:
        torch.set_num_threads(before)
    assert seen == [1]


def test_as_a_command():
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "--version"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.strip() == pipeline.__version__


def test_a_specification_stands_for_options(monkeypatch):
    """Options after it count more, and unknown ones are refused by the step's own parser."""
    from pipeline.steps import collect

    seen = []
    monkeypatch.setattr(collect, "run", seen.append)
    spec = '{"kernels": ["a", "b"], "curves": ["c"], "out": "d", "label": {"model": "{m}"}}'
    assert main(["collect", "--spec", spec, "--out", "e", "--curves-out", "f"]) == 0
    assert [str(path) for path in seen[0].kernels] == ["a", "b"]
    assert seen[0].label == {"model": "{m}"}
    assert str(seen[0].out) == "e"


WHOLE = ["collect", "--kernels", "a", "--curves", "b", "--out", "c", "--curves-out", "d"]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (["--spec", "{bad"], "argument --spec: give it once, and a JSON object"),
        (["--spec", "[1]"], "argument --spec: give it once, and a JSON object"),
        (["--spec", "{}", "--spec", "{}"], "argument --spec: give it once, and a JSON object"),
        (["--spec", '{"no_such": 1}'], "unrecognized arguments: --no-such=1"),
        (['--spec={"no_such": 1}'], "unrecognized arguments: --no-such=1"),
        (["--spec"], "expected one argument"),
    ],
)
def test_a_wrong_specification_is_refused(spec, said, capsys):
    assert exit_code([*WHOLE, *spec]) == 2
    assert said in capsys.readouterr().err


def test_a_specification_may_follow_an_equals_sign(monkeypatch):
    from pipeline.steps import collect

    seen = []
    monkeypatch.setattr(collect, "run", seen.append)
    assert main([*WHOLE, '--spec={"label": {"model": "m"}}']) == 0
    assert seen[0].label == {"model": "m"}
