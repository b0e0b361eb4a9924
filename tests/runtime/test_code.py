import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from pipeline.__main__ import STEPS
from pipeline.runtime import code as sources

ROOT = Path(__file__).parents[2]
LIGHT = ["train", "collect", "tabulate", "tables", "plot", "compare", "provenance"]


@cache
def loaded(code):
    """Top-level and own modules in a fresh interpreter after ``code``."""
    script = f"{code}\nimport sys\nprint(*sys.modules, sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def files(step):
    return {
        str(path.relative_to(sources.ROOT)) for path in sources.closure(f"pipeline.steps.{step}")
    }


# --- what jobs import ------------------------------------------------------------------------


@pytest.mark.parametrize("step", LIGHT)
def test_training_and_table_jobs_do_without_transformers(step):
    modules = loaded(f"import pipeline.steps.{step}")
    assert not modules & {"transformers", "datasets", "lm_eval", "snakemake"}
    if step != "train":
        assert "pipeline.models" not in modules


@pytest.mark.parametrize("step", ["tabulate", "tables", "plot", "compare", "provenance", "fetch"])
def test_steps_without_tensors_do_without_torch(step):
    assert "torch" not in loaded(f"import pipeline.steps.{step}")


def test_planning_does_without_torch():
    modules = loaded(
        "from pipeline.experiment import config, grid, methods\n"
        "from pipeline.download import packages\n"
        "from pipeline.runtime import code as sources\n"
        "from pipeline.report import contents\n"
        f"config.load_config({str(ROOT / 'experiments' / 'smoke.yaml')!r})\n"
        "sources.code_of('train'), packages.packages()"
    )
    assert "pipeline.experiment.grid" in modules
    assert not modules & {"torch", "transformers", "numba", "pandas", "matplotlib"}


@pytest.mark.parametrize("step", ["train", "plot"])
def test_the_closure_holds_everything_that_is_imported(step):
    modules = loaded(f"import pipeline.steps.{step}")
    mine = {m for m in modules if m.startswith("pipeline.")}
    found = {name.removesuffix(".py").removesuffix("/__init__") for name in files(step)}
    assert {name.removeprefix("pipeline.").replace(".", "/") for name in mine} <= found


# --- closures --------------------------------------------------------------------------------


def test_closures_reach_through_modules():
    train = files("train")
    assert {"steps/train.py", "training/loop.py", "synthesis.py", "ops/__init__.py",
            "ops/cpu/sequence.py", "policies.py", "errors.py"} <= train  # fmt: skip
    assert not train & {"models.py", "attention.py", "text/documents.py", "steps/plot.py",
                        "experiment/config.py"}  # fmt: skip
    assert {"transformer/weights.py", "measure/variants.py"} <= files("fidelity")
    assert not files("plot") & {"report/statistics.py", "training/loop.py", "kernels.py"}
    assert "report/statistics.py" in files("tabulate")


@pytest.mark.parametrize("step", ["convert", "sample", "prompts", "dump"])
def test_a_changed_operator_makes_no_weights_text_or_features_again(step):
    assert not [name for name in files(step) if name.startswith("ops/")]


def test_every_step_of_the_command_line_has_a_closure():
    for step in STEPS:
        assert f"steps/{step}.py" in files(step)


def test_folders_hold_nothing_but_a_docstring_of_their_own():
    """An ``__init__`` counts among the code of every step that imports from its folder."""
    for path in sources.ROOT.glob("*/**/__init__.py"):
        assert len(ast.parse(path.read_text()).body) == 1, path


# --- hashes ----------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of the same name: two steps, a module each, and one that both import."""
    root = tmp_path / "pipeline"
    texts = {
        "__init__.py": "",
        "steps/__init__.py": "",
        "steps/one.py": "from ..shared import both\nfrom .. import first\n",
        "steps/two.py": "def run():\n    from .. import second\n",
        "first.py": '"""First."""\n\n\ndef f(a, b):\n    """Add."""\n    return a + b\n',
        "second.py": "import os\nfrom . import shared\n",
        "shared.py": "import json\nboth = 1\n",
        "unused.py": "x = 1\n",
    }
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.setattr(sources, "ROOT", root)
    yield root
    for cached in (sources._parsed, sources.code_of):
        cached.cache_clear()


def hashes():
    for cached in (sources._parsed, sources.code_of):
        cached.cache_clear()
    return sources.code_of("one"), sources.code_of("two")


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("first.py", (True, False)),
        ("second.py", (False, True)),
        ("shared.py", (True, True)),
        ("steps/one.py", (True, False)),
        ("steps/two.py", (False, True)),
        ("unused.py", (False, False)),
    ],
)
def test_a_module_changes_the_steps_that_import_it(package, name, changed):
    before = hashes()
    with (package / name).open("a") as file:
        file.write("\ny = 2\n")
    assert tuple(a != b for a, b in zip(before, hashes(), strict=True)) == changed


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ('"""Other words."""\n\n\ndef f(a, b):\n    """Sum."""\n    return a + b\n', True),
        (
            '"""First."""\n# why\ndef f(\n    a,\n    b,\n):\n    """Add."""\n    return (a + b)\n',
            True,
        ),
        ('"""First."""\n\n\ndef f(a, b):\n    """Add."""\n    return a - b\n', False),
        ('"""First."""\n\n\ndef f(a, b, c=1):\n    """Add."""\n    return a + b\n', False),
        ('"""First."""\n\n\ndef f(a, b):\n    """Add."""\n    return "a + b"\n', False),
    ],
)
def test_only_code_counts(package, text, same):
    before = hashes()
    (package / "first.py").write_text(text)
    assert (hashes() == before) is same


def test_text_that_is_no_docstring_counts(package):
    (package / "first.py").write_text("def f():\n    x = 'a'\n    return x\n")
    before = hashes()
    (package / "first.py").write_text("def f():\n    x = 'b'\n    return x\n")
    assert hashes() != before


def test_the_order_of_files_and_the_folder_do_not_count(package, tmp_path, monkeypatch):
    import shutil

    before = hashes()
    moved = shutil.copytree(package, tmp_path / "elsewhere" / "pipeline")
    monkeypatch.setattr(sources, "ROOT", moved)
    assert hashes() == before


@pytest.mark.parametrize("step", ["evaluate", "harness", "fidelity", "train"])
def test_the_cache_is_no_code_of_what_reads_whole_sequences(step):
    assert "cache.py" not in files(step)
    assert "cache.py" in files("summaries")
