"""Configurations drawn from the schema, in and out of its bounds: a plain error or a plan."""

import copy
import random
import subprocess

import pytest
import yaml
from checkouts import ENVIRONMENT, ROOT, checkout

from pipeline.errors import LessError
from pipeline.experiment import grid
from pipeline.experiment.config import complete, config_hash
from pipeline.experiment.cost import bundles_at_once, expectations
from pipeline.experiment.schema import SCHEMA
from pipeline.text.documents import load_documents, load_pairs
from pipeline.text.prompts import get_template
from pipeline.transformer.weights import materialise

COUNT = 1000
ROOT_SCHEMA = yaml.safe_load(SCHEMA.read_text())
BASES = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "experiments").glob("*.yaml"))]
TEXTS = [
    "", " ", "-", "--out", "..", "../x", "a b", "a'b\"c", "$(touch x)", "`x`", ";", "a\nb", "\x00",
    "{x}", "{}", "é", "\ud800", "\u202e", "x" * 5000, "~", "h2o", "less", "1e-3", "null", "/", "*",
]  # fmt: skip
NUMBERS = [0, 1, -1, 2, 0.05, 1.0, 1e-300, 1e300, 10**18, 10**400, float("nan"), float("-inf")]
WRONG = [None, True, [], {}, "text", 3, 0.5, [[]], {"x": 1}, [None], object(), {1: 2}, b"x"]


def resolve(schema, value=None):
    """The branch of a schema that ``value`` takes."""
    kind = value.get("kind") if isinstance(value, dict) else None
    for branch in schema.get("allOf", ()):
        if branch["if"]["properties"]["kind"]["const"] == kind:
            return branch["then"]
    return schema


def places(config, schema):
    """(container, key, schema of the value) of everything that the schema knows."""
    schema = resolve(schema, config)
    if isinstance(config, dict):
        rest = schema.get("additionalProperties")
        for key in [*config, *schema.get("properties", {})]:
            sub = schema.get("properties", {}).get(key, rest if isinstance(rest, dict) else {})
            yield config, key, sub
            if key in config:
                yield from places(config[key], sub)
    elif isinstance(config, list):
        for i, value in enumerate(config):
            sub = schema.get("items") or {}
            yield config, i, sub
            yield from places(value, sub)


def number(schema, rng):
    """A number at, beside or far from the bounds that the schema gives."""
    low, high = schema.get("minimum", 0), schema.get("maximum", 1000)
    near = [low, low + 1, low - 1, high, high + 1, rng.randint(0, 300), rng.random()]
    return rng.choice(near if rng.random() < 0.8 else NUMBERS)


def drawn(schema, rng, depth=0):
    """A value that the schema might have meant."""
    schema = resolve(schema)
    kind = schema.get("type", "string")
    kind = rng.choice(kind) if isinstance(kind, list) else kind
    if rng.random() < 0.08 or depth > 4:
        return copy.deepcopy(rng.choice(WRONG))
    if "enum" in schema:
        return rng.choice([*schema["enum"], *TEXTS])
    if kind in ("integer", "number"):
        return number(schema, rng)
    if kind == "boolean":
        return rng.random() < 0.5
    if kind == "null":
        return None
    if kind == "array":
        items = schema.get("items") or {"type": "number"}
        size = rng.choice([0, 1, 1, 2, 3, 60])
        return [drawn(items, rng, depth + 1) for _ in range(size)]
    if kind == "object":
        wanted = schema.get("properties", {})
        keys = [key for key in wanted if key in schema.get("required", ()) or rng.random() < 0.3]
        keys += [rng.choice(TEXTS)] if rng.random() < 0.1 else []
        return {key: drawn(wanted.get(key, {}), rng, depth + 1) for key in keys}
    return rng.choice(TEXTS)


def fuzzed(rng):
    """An experiment of which a few values are drawn anew, dropped, or stand under other names."""
    config = copy.deepcopy(rng.choice(BASES))
    for _ in range(rng.choice([1, 1, 2, 3, 8])):
        container, key, schema = rng.choice(list(places(config, ROOT_SCHEMA)))
        what = rng.random()
        if what < 0.1 and key in (container if isinstance(container, dict) else ()):
            del container[key]
        elif what < 0.2 and isinstance(container, dict):
            container[rng.choice(TEXTS)] = drawn(schema, rng)
        else:
            container[key] = drawn(schema, rng)
    return config


def plan(config):
    """What planning asks of a configuration before Snakemake takes over."""
    ranges = [
        grid.layer_ranges(model["num_layers"], config[stage]["layers_per_job"])
        for model in config["models"].values()
        for stage in ("train", "dump")
    ]
    cells = [cell for cell in grid.task_cells(config) if cell.sparsity]
    budgets = [grid.budget(config, cell.model, cell.sparsity) for cell in cells]
    assert all(budget >= 2 for budget in budgets)
    assert all(start < stop for bundles in ranges for start, stop in bundles)
    return list(grid.trainings(config)), bundles_at_once(config), expectations(config)


def test_a_configuration_is_planned_or_refused_by_a_plain_message():
    rng = random.Random(6)
    messages = []
    for _ in range(COUNT):
        config = fuzzed(rng)
        try:
            completed = complete(config)
            plan(completed)
            assert len(config_hash(completed)) == 12
        except LessError as error:
            messages.append(str(error))
    lines = [line for message in messages for line in message.split("\n")]
    assert all(line.isprintable() and len(line) < 1000 for line in lines)
    assert 0.4 * COUNT < len(messages) < 0.95 * COUNT, "most are wrong, some are not"
    assert len({message.split(":")[0] for message in messages}) > 50, "they are wrong everywhere"


@pytest.mark.parametrize(
    "text", ["..", "../x", "a/../x", "/", "-x", "--out=x", "a\nb", "x/\n", "."]
)
def test_what_leads_nowhere_is_a_plain_error_of_its_step(tmp_path, monkeypatch, text):
    """What a configuration hands to steps as it is; nothing is written on its account."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    (here / "t.jsonl").write_text('{"text": "One."}\n')
    known = {"source": "jsonl", "path": "t.jsonl"}
    for step in (
        lambda: load_documents({"source": "jsonl", "path": text}),
        lambda: load_documents(known | {"field": text}),
        lambda: load_pairs(known | {"document_field": "text", "summary_field": text}),
        lambda: get_template(text),
        lambda: materialise({"folder": text}, here / "model"),
        lambda: materialise({"hub": text}, here / "model"),
        lambda: materialise({"random": {"architecture": text}}, here / "model"),
    ):
        with pytest.raises(LessError):
            step()
    assert [path.name for path in tmp_path.rglob("*")] == ["here", "t.jsonl"]


@pytest.mark.slow
def test_snakemake_plans_or_refuses_what_is_fuzzed(tmp_path):
    """A few through Snakemake itself: no traceback of ours, and nothing is written."""
    folder = checkout(tmp_path / "less")
    rng = random.Random(1)
    outcomes = []
    while len(outcomes) < 4:
        config = fuzzed(rng)
        try:
            text = yaml.safe_dump(config)
            expected = bool(complete(yaml.safe_load(text)))
        except LessError:
            expected = False
        except (yaml.YAMLError, ValueError):
            continue  # not even a file
        if outcomes.count(expected) == 2:
            continue
        (folder / "fuzzed.yaml").write_text(text)
        done = subprocess.run(
            ["snakemake", "--dry-run", "--configfile", "fuzzed.yaml"],
            cwd=folder, env=ENVIRONMENT, capture_output=True, text=True,
        )  # fmt: skip
        said = done.stdout + done.stderr
        assert "Traceback" not in said, said
        if not expected:
            assert done.returncode != 0
            assert "configuration: " in said, said
        elif done.returncode:  # a text that is not there, or weights that are not
            assert "Missing input files" in said, said
        outcomes.append(expected)
    assert not (folder / "results").exists()
