"""What the benchmarks compare is the same thing; how fast it is stands in docs/performance.md."""

import re
import sys
from pathlib import Path

import pytest
import torch
from helpers import randn, visible

from benchmarks import eviction, overhead, recall, released, scaling, training_step
from benchmarks.machine import peak_mib, times_faster
from pipeline.eviction import evicted_at
from pipeline.measure.timing import interleaved
from pipeline.policies import get_policy


@pytest.mark.parametrize("name", ["h2o", "lambda", "decayed"])
@pytest.mark.parametrize("groups", [1, 3])
def test_the_releases_masks_are_eviction_times(name, groups):
    q, k = randn(2, 6, 40, 8), randn(2, groups, 40, 8, seed=1)
    policy = get_policy(name, 9)
    times = evicted_at(q, k, policy, "full").repeat_interleave(6 // groups, 1)
    masks = released.masks(released.causal_logits(q, k), policy, groups)
    assert torch.equal(masks, visible(times))


def test_a_step_is_the_releases_step():
    """Same loss, same gradient; ours keeps features and targets in half precision."""
    checks = training_step.compare(160, hidden_size=16)
    loss, off, gradient_off = checks["released, masks given"]
    assert loss > 0
    assert off == gradient_off == 0
    assert max(checks["ours, float32"][1:]) < 1e-3
    _, off, gradient_off = checks["ours, bfloat16"]
    assert off < 1e-2
    assert gradient_off < 0.15  # few rows and units, eight bits each


def test_a_step_changes_the_weights():
    kernel, loss = training_step.build("ours, float32", 128, hidden_size=8)
    before = kernel.phi_w1.detach().clone()
    assert training_step.training_step(kernel, loss)() > 0
    assert not torch.equal(kernel.phi_w1, before)


def test_the_eviction_benchmark_agrees_with_its_reference(monkeypatch, capsys):
    arguments = ["eviction", "--length", "100", "--sparsity", "0.1", "--rounds", "1"]
    for policy in ("h2o", "tova"):
        monkeypatch.setattr(sys, "argv", [*arguments, "--policy", policy])
        assert eviction.main() == 0
        assert "eviction times equal: True" in capsys.readouterr().out


def test_steps_take_turns():
    turns = []
    seconds = interleaved({"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}, 3)
    assert "".join(turns) == "ababab"
    assert [len(s) for s in seconds.values()] == [3, 3]


def test_ratios_are_within_rounds():
    assert times_faster([2.0, 30.0, 8.0], [1.0, 10.0, 2.0]) == 3


def test_peak_memory_is_what_a_step_takes_at_once():
    mib = 2**18  # float32 values
    assert peak_mib(lambda: [torch.ones(64 * mib) for _ in range(2)]) == pytest.approx(128, abs=8)
    assert peak_mib(lambda: [torch.ones(64 * mib).sum() for _ in range(2)]) < 72


def test_tokens_are_new_seen_or_copied():
    found = recall.kinds([5, 6, 7, 6, 5, 6, 6])
    assert found == ["new", "new", "seen", "seen", "copied", "seen"]


def diamond(width):
    """A dump, ``width`` trainings, what joins them, and a measurement."""
    rule = {0: "dump", **dict.fromkeys(range(1, width + 1), "train")}
    rule |= {width + 1: "collect", width + 2: "evaluate"}
    layers = set(range(1, width + 1))
    before = {0: set(), **{x: {0} for x in layers}, width + 1: layers, width + 2: {width + 1}}
    after = {job: {x for x, earlier in before.items() if job in earlier} for job in rule}
    return scaling.Graph(rule, before, after)


def test_simulated_schedules_keep_to_gpus_and_to_what_waits():
    graph = diamond(10)
    times = {"dump": 20.0, "train": 5.0, "collect": 1.0, "evaluate": 30.0}
    chain = scaling.chains(graph, times)
    assert chain[0] == 56
    assert chain[1] == 36
    assert chain[12] == 30
    walls = {n: scaling.wall_time(graph, times, n, chain) for n in (1, 3, 5, 10, 100)}
    assert walls == {1: 101, 3: 71, 5: 61, 10: 56, 100: 56}
    # Jobs start one after another: thirteen before the last one runs, however many GPUs there are.
    slow = {n: scaling.wall_time(graph, times, n, chain, 0.5) for n in (1, 10)}
    assert slow == {1: 101 + 13 * 0.5, 10: 56 + 13 * 0.5}


def test_rules_that_take_a_gpu_are_those_of_the_simulation():
    rules = Path(scaling.__file__).parent.parent / "workflow" / "rules"
    found = set()
    for path in rules.glob("*.smk"):
        for block in re.split(r"^(?=rule |use rule )", path.read_text(), flags=re.M):
            name = re.match(r"rule (\w+):|use rule (\w+) as (\w+) with:", block)
            if name and ("gpu=GPUS" in block or name[2] in found):
                found.add(name[1] or name[3])
    assert found == scaling.GPU


def test_jobs_that_do_nothing_run_through_the_real_workflow(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["overhead", "--layers", "1", "--dry-run"])
    overhead.main()  # its times hold on an idle machine only
    numbers = capsys.readouterr().out.splitlines()[-1].split()
    assert int(numbers[0]) == 43
    assert float(numbers[3]) > float(numbers[4]) > 0
