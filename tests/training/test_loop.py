from dataclasses import fields, replace

import pytest
import torch
from helpers import dense_synthesis, randn
from torch.nn import functional as F

from pipeline.errors import DataError
from pipeline.eviction import evicted_at
from pipeline.kernels import get_kernel
from pipeline.policies import get_policy
from pipeline.storage.files import save_json
from pipeline.training import loop as training
from pipeline.training.loop import Recipe, evaluate, loss_of, split, train_layer
from pipeline.training.prepare import prepare

HEADS, GROUPS, SIZE, LENGTH, COUNT, BUDGET = 4, 2, 8, 24, 8, 4
RECIPE = Recipe(epochs=5, batch_size=2, learning_rate=3e-3, halve_every=2, validation=0.25)


def sequences(count=COUNT, dtype=torch.float32):
    for i in range(count):
        yield (
            randn(1, HEADS, LENGTH, SIZE, seed=3 * i, dtype=dtype),
            randn(1, GROUPS, LENGTH, SIZE, seed=3 * i + 1, dtype=dtype),
            randn(1, GROUPS, LENGTH, SIZE, seed=3 * i + 2, dtype=dtype),
        )


O_WEIGHT = randn(12, HEADS * SIZE, seed=99)


def toy(policy="h2o", scores="cached"):
    return prepare(sequences(), O_WEIGHT, get_policy(policy, BUDGET), scores)


@pytest.fixture(scope="module")
def prepared():
    return toy()


def fresh(seed=0):
    return get_kernel(
        "less", num_heads=HEADS, num_kv_heads=GROUPS, head_dim=SIZE,
        kernel_size=4, hidden_size=16, seed=seed,
    )  # fmt: skip


def weights(kernel):
    return {name: p.detach().clone() for name, p in kernel.named_parameters()}


def assert_bit_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def untimed(curve):
    return [replace(epoch, seconds=0.0) for epoch in curve]


# --- the loss --------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["h2o", "lambda", "tova"])
@pytest.mark.parametrize("scores", ["cached", "full"])
@pytest.mark.parametrize("with_kernel", [False, True])
def test_loss_is_the_dense_one(policy, scores, with_kernel):
    """Rows that miss something, after the output projection; q, k, v kept in half precision."""
    prepared = toy(policy, scores)
    kernel = None
    if with_kernel:
        kernel = fresh().eval()
        with torch.no_grad():
            kernel.s1.fill_(1.0)
            kernel.s2.fill_(0.5)
    expected = []
    for q, k, v in sequences():
        times = evicted_at(q, k, get_policy(policy, BUDGET), scores)
        full = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        difference = dense_synthesis(q, k, v, times, kernel) - full.double()
        rows = difference[0, :, BUDGET + 1 :].transpose(0, 1).flatten(1)
        expected.append((rows @ O_WEIGHT.double().mT).square().mean().item())
    with torch.no_grad():
        each = [loss_of(prepared, torch.tensor([i]), kernel).item() for i in range(COUNT)]
        together = loss_of(prepared, torch.arange(COUNT), kernel).item()
    assert each == pytest.approx(expected, rel=5e-3)
    assert together == pytest.approx(sum(expected) / COUNT, rel=5e-3)
    assert evaluate(prepared, [1, 4], kernel) == pytest.approx((each[1] + each[4]) / 2, rel=1e-5)


@pytest.mark.parametrize("stride", [2, 3, 7])
def test_losses_of_every_start_make_up_the_loss(prepared, stride):
    kernel, index = fresh().eval(), torch.tensor([1, 4, 5])
    with torch.no_grad():
        kernel.s1.fill_(1.0)
        for k in (kernel, None):
            starts = range(min(stride, prepared.q.shape[2]))
            rows = [len(range(start, prepared.q.shape[2], stride)) for start in starts]
            losses = [loss_of(prepared, index, k, start, stride).item() for start in starts]
            mean = sum(n * loss for n, loss in zip(rows, losses, strict=True)) / sum(rows)
            assert mean == pytest.approx(loss_of(prepared, index, k).item(), rel=1e-5)


def test_prepared_holds_only_rows_that_miss_something(prepared):
    rows = LENGTH - BUDGET - 1
    assert len(prepared) == COUNT
    assert prepared.q.shape == prepared.target.shape == (COUNT, HEADS, rows, SIZE)
    assert prepared.k.shape == prepared.v.shape == (COUNT, GROUPS, rows, SIZE)
    half = {f.name for f in fields(prepared) if f.name not in ("lse", "o_weight", "initial")}
    assert {getattr(prepared, name).dtype for name in half} == {torch.float16}
    assert prepared.lse.dtype == torch.float32
    assert prepared.initial == 0


def test_half_precision_features_prepare_alike():
    half = prepare(sequences(dtype=torch.float16), O_WEIGHT, get_policy("lambda", BUDGET), "full")
    single = toy("lambda", "full")
    torch.testing.assert_close(half.target, single.target, atol=5e-3, rtol=5e-3)
    torch.testing.assert_close(half.k, single.k)


def test_nothing_evicted_is_a_clear_error():
    with pytest.raises(ValueError, match="budget of 24 tokens evicts nothing from 24-token"):
        prepare(sequences(1), O_WEIGHT, get_policy("h2o", LENGTH), "cached")


# --- training --------------------------------------------------------------------------------


def test_loss_falls(prepared):
    kernel = fresh()
    _, validation = split(COUNT, RECIPE.validation, RECIPE.seed)
    untouched = evaluate(prepared, validation, None)
    sparse = evaluate(prepared, list(range(COUNT)), None)
    curve = train_layer(prepared, kernel, replace(RECIPE, epochs=20, halve_every=10))
    assert [e.epoch for e in curve] == list(range(21))
    assert curve[0].validation_loss == pytest.approx(untouched, rel=1e-3)
    assert curve[-1].train_loss < 0.9 * curve[0].train_loss
    assert evaluate(prepared, list(range(COUNT)), kernel) < 0.9 * sparse


def test_every_parameter_trains(prepared):
    kernel = fresh()
    before = weights(kernel)
    train_layer(prepared, kernel, replace(RECIPE, epochs=1))
    for name, value in weights(kernel).items():
        assert not torch.equal(value, before[name]), name


@pytest.mark.parametrize("stride", [3, 1000])
def test_training_on_some_queries_learns_too(prepared, stride):
    _, validation = split(COUNT, RECIPE.validation, RECIPE.seed)
    recipe = replace(RECIPE, epochs=20, halve_every=10, query_stride=stride, beta2=0.95)
    curves = [train_layer(prepared, fresh(), recipe) for _ in range(2)]
    assert untimed(curves[0]) == untimed(curves[1])
    assert curves[0][-1].train_loss < 0.95 * evaluate(prepared, validation, None)


def test_learning_rate_halves(prepared):
    curve = train_layer(prepared, fresh(), RECIPE)
    rate = RECIPE.learning_rate
    rates = [0, rate, rate, rate / 2, rate / 2, rate / 4]
    assert [e.learning_rate for e in curve] == pytest.approx(rates)


def test_defaults_are_the_papers():
    assert Recipe() == Recipe(40, 2, 1e-3, 10, 0.999, 1, 0.1, 0)


def test_training_is_a_function_of_its_seed(prepared):
    def trained(seed):
        kernel = fresh()
        curve = train_layer(prepared, kernel, replace(RECIPE, epochs=2, seed=seed))
        return weights(kernel), untimed(curve)

    torch.manual_seed(1)
    first, curve = trained(5)
    torch.manual_seed(2)  # plays no part
    again, same = trained(5)
    other, _ = trained(6)
    assert_bit_equal(first, again)
    assert curve == same
    assert not torch.equal(first["phi_w1"], other["phi_w1"])


def test_the_best_validation_epoch_is_kept(prepared, monkeypatch):
    """Validation losses are dictated: 5, 3, 1, 4, 1, 2; the first of equals stays."""
    _, validation = split(len(prepared), RECIPE.validation, RECIPE.seed)
    dictated = iter([5.0, 3.0, 1.0, 4.0, 1.0, 2.0])
    monkeypatch.setattr(
        training, "evaluate", lambda _, index, __: next(dictated) if index == validation else 9.0
    )
    kernel, seen = fresh(), []
    curve = train_layer(prepared, kernel, RECIPE, report=lambda _: seen.append(weights(kernel)))
    assert [e.validation_loss for e in curve] == [5, 3, 1, 4, 1, 2]
    assert_bit_equal(weights(kernel), seen[2])
    assert not torch.equal(seen[2]["phi_w1"], seen[5]["phi_w1"])


def test_training_that_only_harms_leaves_the_kernel_as_it_was(prepared, monkeypatch):
    worse = iter(range(1, 100))
    monkeypatch.setattr(training, "evaluate", lambda *_: float(next(worse)))
    kernel = fresh()
    before = weights(kernel)
    train_layer(prepared, kernel, replace(RECIPE, epochs=2))
    assert_bit_equal(weights(kernel), before)


# --- interruption ----------------------------------------------------------------------------


class StopError(Exception):
    pass


def interrupt_after(epoch):
    def report(done):
        if done.epoch == epoch:
            raise StopError

    return report


@pytest.mark.parametrize("last", range(RECIPE.epochs + 1))
def test_interrupted_and_resumed_equals_undisturbed(prepared, tmp_path, last):
    undisturbed = fresh()
    curve = train_layer(prepared, undisturbed, RECIPE)

    state = tmp_path / "layer.safetensors"
    with pytest.raises(StopError):
        train_layer(prepared, fresh(), RECIPE, state, interrupt_after(last))
    assert state.exists() == (last > 0)
    resumed, reported = fresh(seed=1 if last else 0), []  # weights come from the file
    again = train_layer(prepared, resumed, RECIPE, state, reported.append)
    assert_bit_equal(weights(resumed), weights(undisturbed))
    assert untimed(again) == untimed(curve)
    assert [e.epoch for e in reported] == list(range(last + 1 if last else 0, RECIPE.epochs + 1))
    assert not resumed.training


def test_resumed_state_is_where_the_parameters_are(prepared, tmp_path):
    """On a device: everything but the optimizer's counter, which it keeps on the host."""
    state = tmp_path / "layer.safetensors"
    with pytest.raises(StopError):
        train_layer(prepared, fresh(), RECIPE, state, interrupt_after(1))
    parameters = dict(fresh().to("meta").named_parameters())
    optimizer = torch.optim.Adam(parameters.values())
    _, best = training._resume(state, RECIPE, parameters, optimizer)
    assert {tensor.device.type for tensor in best.values()} == {"meta"}
    for parameter in parameters.values():
        places = {key: value.device.type for key, value in optimizer.state[parameter].items()}
        assert places == {"step": "cpu", "exp_avg": "meta", "exp_avg_sq": "meta"}


def test_resuming_twice_keeps_the_best_epoch(prepared, tmp_path, monkeypatch):
    """The best of 5, 1, 4, 3 comes before both interruptions."""
    recipe, state = replace(RECIPE, epochs=3), tmp_path / "layer.safetensors"
    _, validation = split(len(prepared), recipe.validation, recipe.seed)
    dictated = iter([5.0, 1.0, 4.0, 3.0])
    monkeypatch.setattr(
        training, "evaluate", lambda _, index, __: next(dictated) if index == validation else 9.0
    )
    kernel, best = fresh(), None
    with pytest.raises(StopError):
        train_layer(prepared, kernel, recipe, state, interrupt_after(1))
    best = weights(kernel)
    with pytest.raises(StopError):
        train_layer(prepared, fresh(), recipe, state, interrupt_after(2))
    kernel = fresh()
    train_layer(prepared, kernel, recipe, state)
    assert_bit_equal(weights(kernel), best)


@pytest.mark.parametrize(
    "change", [{"learning_rate": 1e-2}, {"epochs": 4}, {"seed": 1}, {"validation": 0.5}]
)
def test_state_of_another_recipe_is_ignored(prepared, tmp_path, change):
    state, recipe = tmp_path / "layer.safetensors", replace(RECIPE, epochs=2)
    train_layer(prepared, fresh(), replace(recipe, **change), state)
    kernel, undisturbed = fresh(), fresh()
    curve = train_layer(prepared, kernel, recipe, state)
    assert untimed(curve) == untimed(train_layer(prepared, undisturbed, recipe))
    assert_bit_equal(weights(kernel), weights(undisturbed))


@pytest.mark.parametrize("damage", ["truncated", "another kind"])
def test_damaged_state_is_reported_by_name(prepared, tmp_path, damage):
    state = tmp_path / "layer.safetensors"
    train_layer(prepared, fresh(), replace(RECIPE, epochs=1), state)
    if damage == "truncated":
        state.write_bytes(state.read_bytes()[:-50])
    else:
        save_json(state, {"kind": "training state"})
    with pytest.raises(DataError, match=r"layer\.safetensors"):
        train_layer(prepared, fresh(), replace(RECIPE, epochs=1), state)


# --- split -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "share", "held_out"), [(512, 0.1, 51), (2, 0.1, 1), (5, 1.0, 4)])
def test_split_is_disjoint_and_whole(count, share, held_out):
    train, validation = split(count, share, 0)
    assert sorted(train + validation) == list(range(count))
    assert len(validation) == held_out
    assert split(count, share, 0) == (train, validation)
    if count > 100:
        assert split(count, share, 1) != (train, validation)
        assert validation != list(range(held_out))  # drawn, not the first


def test_batches_cover_every_sequence_once_in_seeded_order():
    indices = [3, 1, 4, 15, 9]
    batches = [b.tolist() for b, _ in training._batches(indices, 2, 1, 0)]
    assert [len(b) for b in batches] == [2, 2, 1]
    assert sorted(i for batch in batches for i in batch) == sorted(indices)
    assert batches != [b.tolist() for b, _ in training._batches(indices, 2, 1, 1)]
    starts = {start for seed in range(20) for _, start in training._batches(indices, 2, 3, seed)}
    assert starts == {0, 1, 2}
