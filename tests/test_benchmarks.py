"""What the benchmarks compare is the same thing; how fast it is stands in docs/performance.md."""

import sys

import pytest
import torch
from helpers import randn, visible

from benchmarks import eviction, recall, released, training_step
from benchmarks.machine import interleaved, peak_mib, times_faster
from pipeline.eviction import evicted_at
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
