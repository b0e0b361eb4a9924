"""The diffs of docs/extending.md do what they say, on a copy of the sources."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
DIFFS = {
    re.search(r"^\+\+\+ b/(.*)$", diff, re.MULTILINE)[1]: diff
    for diff in re.findall(r"```diff\n(.*?)```", PAGE, re.DOTALL)
}


def changed(before, diff):
    """A file after a diff of one place, found by its lines and not by their numbers."""
    lines = diff.split("@@\n", 1)[1].splitlines()
    old = "".join(f"{line[1:]}\n" for line in lines if line[:1] != "+")
    new = "".join(f"{line[1:]}\n" for line in lines if line[:1] != "-")
    assert before.count(old) == 1, old
    return before.replace(old, new)


@pytest.fixture
def copy(tmp_path):
    """Sources to change."""
    for part in ("pipeline", "experiments", "tests/data"):
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / part, tmp_path / part, ignore=skip)
    return tmp_path


def extend(copy, *files):
    for file in files:
        path = copy / file
        path.write_text(changed(path.read_text(), DIFFS[file]))


def ran(copy, code):
    done = subprocess.run(
        [sys.executable, "-c", PLAN + code], cwd=copy, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


FIELD = "from pydantic import Field"
PLAN = """
import yaml
from pathlib import Path
from pipeline.experiment import commands, grid, paths
from pipeline.experiment.config import complete
from pipeline.experiment.cost import expectations
config = yaml.safe_load(Path("experiments/smoke.yaml").read_text())
"""


def test_every_diff_is_tried():
    assert set(DIFFS) == {
        "pipeline/policies.py", "pipeline/experiment/methods.py", "pipeline/kernels.py",
        "pipeline/experiment/kinds.py",
    }  # fmt: skip


def test_a_policy_is_a_row(copy):
    extend(copy, "pipeline/policies.py")
    code = """
config["grid"]["policies"].append("hitters")
config = complete(config)
print(*(t.name for t in grid.trainings(config)))
from pipeline.policies import get_policy
p = get_policy("hitters", 20)
print(p.sink, p.recent, p.heavy)
"""
    said = ran(copy, code)
    assert "hitters-0.1" in said
    assert said[-3:] == ["4", "12", "4"]


def test_a_method_is_a_row(copy):
    """Its budget and its colours follow; it is drawn and compared as any."""
    extend(copy, "pipeline/experiment/methods.py")
    code = """
config["grid"]["methods"] = ["baseline", "less_plus"]
config = complete(config)
print(*(str(paths.Paths.of(config).kernels(t)) for t in grid.trainings(config)))
(cell,) = [c for c in grid.task_cells(config) if c.task == "text" and c.policy == "h2o"]
print(*commands.measure(config, cell)["methods"])
from pipeline.experiment.methods import METHODS, label_of
print(METHODS["less_plus"].budget(12, 8), label_of("less_plus", 0.1))
from pipeline.report.style import colour_of
print(colour_of("less_plus"), colour_of("less_plus", 1))
"""
    said = ran(copy, code)
    assert "scratch/smoke/kernels/tiny/less/h2o-0.1.safetensors" in said
    assert said[-8:] == ["baseline", "less_plus", "16", "LESS+", "(10", "%)", "#D55E00", "#F0E442"]


def test_a_second_trained_kernel_has_files_of_its_own(copy):
    """Trained, saved, loaded and told from the first, with no other line changed."""
    extend(copy, "pipeline/kernels.py")
    methods = copy / "pipeline/experiment/methods.py"
    row = '    "shifted": Method(title="Shifted", kernel="shifted", trained=True),\n'
    before = methods.read_text()
    methods.write_text(before.replace("] = {\n", "] = {\n" + row, 1))
    assert methods.read_text() != before
    code = """
import torch
from pipeline.measure.variants import Compared
from pipeline.training.checkpoint import kernel_in, load_kernels, save_kernels, trainable
from pipeline.transformer.shape import Heads
from types import SimpleNamespace
from transformers import LlamaConfig
config["grid"]["methods"] = ["baseline", "less", "shifted"]
config = complete(config)
names = [str(paths.Paths.of(config).kernels(t)) for t in grid.trainings(config)]
print(*names)
heads, files = Heads(4, 2, 8), []
for name in ("less", "shifted"):
    files.append(Path(f"{name}.safetensors"))
    save_kernels(files[-1], {0: trainable(name, heads, {})}, name, heads, {})
    print(kernel_in(files[-1]), type(load_kernels(files[-1], heads, 1)[0]).__name__)
sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32}
own = LlamaConfig(num_hidden_layers=1, **sizes)
model = SimpleNamespace(config=own, dtype=torch.float32, device=torch.device("cpu"))
methods = ["less", "shifted"]
compared = Compared("h2o", 8, methods=methods, kernels=files, train_sparsities=[0.1, 0.2])
for variant in compared.variants(model):
    print(variant.method, variant.train_sparsity, type(variant.kernels[0]).__name__)
"""
    said = ran(copy, code)
    assert {"scratch/smoke/kernels/tiny/less/h2o-0.1.safetensors",
            "scratch/smoke/kernels/tiny/shifted/h2o-0.1.safetensors"} <= set(said)  # fmt: skip
    assert said[-10:] == [
        "less", "LessKernel", "shifted", "ShiftedLess",
        "less", "0.1", "LessKernel", "shifted", "0.2", "ShiftedLess",
    ]  # fmt: skip


def test_a_kind_of_task_is_a_row(copy):
    extend(copy, "pipeline/experiment/kinds.py")
    kinds = copy / "pipeline/experiment/kinds.py"
    kinds.write_text(
        kinds.read_text().replace(
            "\nfrom . import grid\n", "\nfrom pydantic import Field\n\nfrom . import grid\n", 1
        )
    )
    code = """
config["tasks"] = {"far": {"kind": "recall", "dataset": "test", "windows": 3}}
heads = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8}
config["models"]["tiny"]["shape"] = heads | {"parameters": 1e9}
config = complete(config)
print(config["tasks"]["far"]["gap"])
cells = list(grid.task_cells(config))
print(*(paths.cell_file(config, cell) for cell in cells))
print(commands.measure(config, cells[-1])["gap"])
print("recall" in expectations(config)[-1])
from pipeline.errors import ConfigError
try:
    complete(config | {"tasks": {"far": {"kind": "recall", "dataset": "test", "windows": 99}}})
except ConfigError as error:
    print(str(error).split()[0])
"""
    said = ran(copy, code)
    assert said[0] == "100"
    assert "scratch/smoke/recall/tiny/far/full.parquet" in said
    assert "scratch/smoke/recall/tiny/far/h2o-0.1.parquet" in said
    assert said[-3:] == ["100", "True", "tasks.far:"]
