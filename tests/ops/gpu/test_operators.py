"""The Triton operators against their plain references.

On a GPU they run compiled; elsewhere in Triton's interpreter, which conftest asks for before
anything imports triton. The interpreter is slow, so cases are small and few.
"""

import copy
import os
import subprocess
import sys
from functools import reduce
from pathlib import Path
from random import Random
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import triton.language as tl
from helpers import Case, assert_same_evictions, cases, randn, strong_kernel
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime import interpreter

from benchmarks import gpu_check
from pipeline import cache as cache_module
from pipeline import synthesis
from pipeline.cache import LessCache, LessLayer
from pipeline.decoding.engine import Engine
from pipeline.decoding.full_cache import FullCache
from pipeline.eviction import evicted_at
from pipeline.measure.operators import untrained_kernels
from pipeline.ops import gpu, low_rank
from pipeline.ops.decode import decode_backend
from pipeline.ops.gpu import compiled as opaque
from pipeline.ops.gpu import decode as decoding
from pipeline.ops.gpu import linear as gpu_linear
from pipeline.ops.gpu import maps
from pipeline.ops.gpu import sequence as gpu_sequence
from pipeline.ops.gpu import sequence as scan
from pipeline.ops.low_rank import LowRankState
from pipeline.ops.packed import PackedKernel, pack
from pipeline.ops.reference import decode as decode_reference
from pipeline.ops.reference import sequence as reference
from pipeline.ops.sequence import backend
from pipeline.ops.slots import Slots, by_head
from pipeline.ops.times import NEVER
from pipeline.policies import get_policy
from pipeline.synthesis import correct
from pipeline.transformer.interface import enable
from pipeline.transformer.weights import load_model

ROOT = Path(__file__).parents[3]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
# What is slow is an example in the interpreter, and compiling what is new in one on a GPU.
few = settings(
    max_examples=4 if DEVICE == "cuda" else 10, phases=[Phase.explicit, Phase.reuse, Phase.generate]
)

# Heads as models have them; drawn ones are smaller.
REAL = [
    Case(get_policy("h2o", 10), 1, 1, 2, 20, 64, 0, torch.bfloat16, "cached", 0.3, 0),
    Case(get_policy("tova", 10), 1, 2, 1, 20, 128, 12, torch.float16, "cached", 0.3, 0),
    Case(get_policy("lambda", 10), 1, 1, 2, 20, 256, 0, torch.float16, "full", 0.3, 0),
]


def real_cases(**more):
    """Adds the real heads to a test's drawn cases."""
    return lambda test: reduce(lambda t, case: example(case=case, **more)(t), REAL, test)


@pytest.fixture(scope="module", autouse=True)
def better_interpreter():
    """Patch the language once a module, not at every call of a function: most of the time goes
    there. And widen bfloat16 before a product, which the interpreter would take by its bits.
    """
    patch, product, seen = interpreter._patch_lang, interpreter.InterpreterBuilder.create_dot, set()

    def once(fn):
        if id(fn.__globals__) not in seen:
            seen.add(id(fn.__globals__))
            patch(fn)
        return SimpleNamespace(restore=lambda: None)

    def widened(self, a, b, *rest):
        a, b = (
            self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b)
        )
        return product(self, a, b, *rest)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(interpreter, "_patch_lang", once)
        patched.setattr(interpreter.InterpreterBuilder, "create_dot", widened)
        yield


@st.composite
def streams(draw, max_length=16):
    """A case, how many of each sequence's first tokens are padding, and tokens read at once."""
    case = draw(cases(max_length=max_length)).but(scores="cached", prompt=0)
    padding = [draw(st.integers(0, min(3, case.length - 1))) for _ in range(case.batch)]
    return case, torch.tensor(padding), draw(st.sampled_from([1, 5, case.length]))


class Reader:
    """Tokens of a case, padded on the left, read through slots and, with a kernel, a state."""

    def __init__(self, case, padding, kernel=None):
        self.case, self.kernel = case, kernel and pack(copy.deepcopy(kernel).to(DEVICE))
        self.q, self.k, self.v, self.padding = (x.to(DEVICE) for x in (*case.qkv, padding))
        self.slots = Slots.empty(self.k, case.policy)
        if kernel is not None:
            sizes = case.batch, case.groups, kernel.kernel_size
            self.kept = torch.zeros(*sizes[:2], case.policy.budget + 1, sizes[2], device=DEVICE)
            self.state = LowRankState.zeros(*sizes, case.size, DEVICE)

    def decode(self, ops, start, stop):
        """What ``ops`` gives for tokens start..stop: output and evicted positions."""
        q, k, v = (x[:, :, start:stop] for x in (self.q, self.k, self.v))
        position, policy = start - self.padding, self.case.policy
        decoded = ops.decode(self.slots, q, k, v, position, policy)
        if self.kernel is None:
            return decoded.out, decoded.positions
        out = decode_reference.correct(decoded, q, self.kernel, self.state, position, policy)
        return out, decoded.positions

    def step(self, start, stop):
        """The same by the fused step."""
        q, k, v = (x[:, :, start:stop] for x in (self.q, self.k, self.v))
        return decoding.step(
            self.slots, self.kept, self.state, q, k, v, self.kernel, start - self.padding,
            self.case.policy,
        )  # fmt: skip

    def tensors(self):
        """All that it holds, but for keys and values of free slots."""
        slots = self.slots
        taken = by_head(slots.positions >= 0, self.case.groups)[..., None]
        held = [slots.keys * taken, slots.values * taken, slots.positions, slots.scores, slots.free]
        return held if self.kernel is None else [*held, self.state.H, self.state.z]


def times_of(gone, padding):
    """Eviction times (B, U, S) from the position evicted after each token (B, U, S)."""
    length = gone.shape[-1]
    times = torch.full((*gone.shape[:2], length + 1), NEVER, dtype=torch.int32)
    time = (torch.arange(1, length + 1) - padding[:, None])[:, None].expand_as(gone)
    times.scatter_(2, torch.where(gone < 0, length, gone).long(), time.to(torch.int32))
    return times


# --- decode -----------------------------------------------------------------------------------


@few
@given(streams(), st.booleans())
def test_decode_equals_the_whole_sequence(stream, with_kernel):
    case, padding, piece = stream
    kernel = strong_kernel(case) if with_kernel else None
    reader = Reader(case, padding, kernel)
    pieces = [reader.decode(decoding, t, t + piece) for t in range(0, case.length, piece)]
    out, gone = (torch.cat(column, 2).cpu() for column in zip(*pieces, strict=True))
    held = (reader.slots.positions >= 0).sum(-1).cpu()
    assert (held == (case.length - padding)[:, None].clamp(max=case.policy.budget)).all()
    times = times_of(gone, padding)
    for b, pad in enumerate(padding.tolist()):
        alone = case.but(batch=1, length=case.length - pad)
        q, k, v = alone.__dict__["qkv"] = tuple(x[b : b + 1, :, pad:] for x in case.qkv)
        truth, expected, lse = reference.bounded_attention(*alone.sets, case.policy)
        mine = times[b, :, : alone.length]
        assert_same_evictions(alone, truth, mine)
        if not torch.equal(truth, mine):  # a near tie was broken the other way
            continue
        expected = expected.view(q.shape)
        if with_kernel:
            seen = by_head(truth[None], case.groups)
            expected = correct(q, k, v, seen, kernel, expected, lse.view(q.shape[:-1]))
        torch.testing.assert_close(out[b : b + 1, :, pad:], expected, **CLOSE)
        assert (out[b, :, :pad] == 0).all()


@few
@given(streams(), st.sampled_from([16, 512]))
def test_a_step_equals_decoding_and_its_correction(stream, span):
    case, padding, piece = stream
    kernel = strong_kernel(case)
    fused, plain = Reader(case, padding, kernel), Reader(case, padding, kernel)
    with mock.patch.object(decoding, "SPAN", span):
        for start in range(0, case.length, piece):
            out, gone = fused.step(start, start + piece)
            expected, positions = plain.decode(decoding, start, start + piece)
            torch.testing.assert_close(out, expected, **CLOSE)
            assert torch.equal(gone, positions)
    for mine, theirs in zip(fused.tensors(), plain.tensors(), strict=True):
        torch.testing.assert_close(mine, theirs, **CLOSE)


@pytest.mark.parametrize("name", ["h2o", "tova"])
def test_two_hundred_tokens_equal_the_cache(name):
    """A layer that takes the fused step, and one that takes the CPU's, prompt and tokens."""
    case = Case(get_policy(name, 6), 1, 1, 2, 216, 4, 0, torch.float32, "cached", 1.0, 0)
    kernel = strong_kernel(case)
    device = [DEVICE, "cpu"]
    layers = [LessLayer(case.policy, pack(copy.deepcopy(kernel).to(d)), "full") for d in device]

    def attend(layer, tokens, device):
        q, k, v = (x[:, :, tokens].to(device) for x in case.qkv)
        return layer.attend(q, *layer.update(k, v), None).cpu()

    for tokens in (slice(0, 16), *(slice(t, t + 1) for t in range(16, 216))):
        with mock.patch.object(cache_module, "decode_backend", return_value=decoding):
            out = attend(layers[0], tokens, DEVICE)
        torch.testing.assert_close(out, attend(layers[1], tokens, "cpu"), **CLOSE)
        fused, plain = (layer.slots.positions.cpu() for layer in layers)
        assert torch.equal(fused, plain)
        torch.testing.assert_close(layers[0].state.H.cpu(), layers[1].state.H, **CLOSE)
    taken = (fused >= 0)[..., None]
    truth = kernel.psi(layers[1].slots.keys) * taken
    torch.testing.assert_close(layers[0].features.cpu() * taken, truth, **CLOSE)
    parts = [layer.memory()["features"] for layer in layers]
    assert parts == [7 * kernel.kernel_size * 4, 0]


@pytest.mark.parametrize("size", [64, 80, 96, 128, 256])
def test_head_sizes(size):
    policy = get_policy("h2o", 40)  # more than one tile of slots
    case = Case(policy, 1, 2, 2, 44, size, 0, torch.float16, "cached", 0.3, 0)
    kernel = strong_kernel(case, kernel_size=32 if size == 80 else 8)
    reader, truth = (Reader(case, torch.tensor([0]), kernel) for _ in range(2))
    out, gone = reader.decode(decoding, 0, 44)
    expected, evicted = truth.decode(decode_reference, 0, 44)
    assert torch.equal(gone, evicted)
    torch.testing.assert_close(out, expected, **CLOSE)


@pytest.mark.parametrize(
    ("size", "rank", "name", "dtype"),
    [
        (64, 8, "h2o", torch.float16), (64, 32, "lambda", torch.bfloat16),
        (64, 8, "tova", torch.bfloat16), (128, 32, "h2o", torch.bfloat16),
        (128, 8, "lambda", torch.float16), (128, 32, "tova", torch.float16),
        (256, 8, "h2o", torch.bfloat16), (256, 32, "lambda", torch.float16),
        (256, 8, "tova", torch.bfloat16),
    ],
)  # fmt: skip
def test_fused_steps_of_real_sizes(size, rank, name, dtype):
    """Every two of these meet: tokens that arrive together, then one by one as in decoding."""
    case = Case(get_policy(name, 40), 1, 2, 2, 46, size, 0, dtype, "cached", 0.3, 0)
    kernel = strong_kernel(case, kernel_size=rank)
    reader, truth = (Reader(case, torch.tensor([0]), kernel) for _ in range(2))
    for start, stop in ((0, 42), *((t, t + 1) for t in range(42, 46))):
        out, gone = reader.step(start, stop)
        expected, evicted = truth.decode(decode_reference, start, stop)
        assert torch.equal(gone, evicted)
        torch.testing.assert_close(out, expected, **CLOSE)
    torch.testing.assert_close(reader.tensors(), truth.tensors(), **CLOSE)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["h2o", "lambda", "tova"])
def test_a_broken_sequence_stays_alone(bad, name):
    case = Case(get_policy(name, 5), 2, 2, 2, 12, 4, 0, torch.float32, "cached", 1.0, 0)
    q, k, _ = case.qkv
    k[1, :, 4] = bad
    q[1, :, 7] = bad
    both = Reader(case, torch.tensor([0, 0]), strong_kernel(case))
    alone = case.but(batch=1)
    alone.__dict__["qkv"] = tuple(x[:1] for x in case.qkv)
    one = Reader(alone, torch.tensor([0]), strong_kernel(case))
    for t in range(12):
        torch.testing.assert_close(both.step(t, t + 1)[0][:1], one.step(t, t + 1)[0], **CLOSE)
    slots = both.slots
    assert ((slots.free >= 0) & (slots.free <= 5)).all()
    assert ((slots.positions >= 0).sum(-1) == 5).all()


@pytest.mark.parametrize("name", ["h2o", "lambda"])
def test_under_torch_compile(name):
    """One graph, without a look into the launches, gives what they give."""
    case = Case(get_policy(name, 5), 2, 1, 2, 8, 4, 0, torch.float32, "cached", 1.0, 0)
    padding, kernel = torch.tensor([0, 1]), strong_kernel(case)
    mine, truth = (Reader(case, padding, kernel) for _ in range(2))

    def run(slots, kept, state, q, k, v, position):
        rest = q, k, v, mine.kernel, position, case.policy
        out, gone = decode_backend(torch.device("cuda")).step(slots, kept, state, *rest)
        return out * 2, gone

    torch.compiler.reset()
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True, dynamic=False)
    for t in range(case.length):
        q, k, v = (x[:, :, t : t + 1] for x in (mine.q, mine.k, mine.v))
        out, gone = compiled(mine.slots, mine.kept, mine.state, q, k, v, t - mine.padding)
        expected, positions = truth.step(t, t + 1)
        torch.testing.assert_close(out, expected * 2)
        assert torch.equal(gone, positions)
    for a, b in zip(mine.tensors(), truth.tensors(), strict=True):
        torch.testing.assert_close(a, b)


class Waits(TorchDispatchMode):
    """Notes operations whose result the host has to wait for; a CUDA graph cannot hold them."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique")

    def __init__(self):
        super().__init__()
        self.seen, self.count = set(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        if any(name in func.name() for name in self.NAMES):
            self.seen.add(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["full", "baseline", "less", "performer"])
def test_a_step_of_the_engine_waits_for_nothing(method):
    """And reads no number of the host's: what changes from step to step is in its tensors."""
    fields = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16,
              "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
    model = enable(load_model({"random": {"architecture": "llama", **fields}}, device=DEVICE))
    cache = FullCache(model.config, 40, model.device)
    cache.masked = True
    if method != "full":
        kernel = {"less": "less", "performer": "performer"}.get(method)
        kernels = kernel and untrained_kernels(kernel, model, kernel_size=4, hidden_size=8)
        cache = LessCache(model.config, get_policy("h2o", 6), kernels)
    prompt = torch.arange(20, device=DEVICE).view(2, 10)
    own = mock.patch.object(cache_module, "decode_backend", return_value=decoding)
    with own, torch.no_grad():
        engine = Engine(model, cache, 2)
        engine.read(prompt)
        cache.reads = 40
        with Waits() as waits:
            engine._step()
        first = engine.tokens.clone()
        if method != "full":  # as in a replay, the host's count stands still
            cache.layers[0].seen = 10 + 1000
        engine._step()
        mine = [first, engine.tokens]
        engine.read(prompt)
        for token in mine:
            cache.reads = 40
            engine._step()
            assert torch.equal(engine.tokens, token)
    assert waits.count > 10
    assert not waits.seen


@pytest.mark.parametrize("name", ["h2o", "lambda"])
def test_operators_say_what_they_change(name):
    case = Case(get_policy(name, 5), 1, 1, 2, 2, 4, 0, torch.float32, "cached", 1.0, 0)
    reader = Reader(case, torch.tensor([0]), strong_kernel(case))
    held, numbers = opaque._held(reader.slots), opaque._numbers(case.policy)
    q, k, v = (x[:, :, :1] for x in (reader.q, reader.k, reader.v))
    position, kernel = torch.zeros(1, dtype=torch.int32, device=DEVICE), reader.kernel
    weights = kernel.w1, kernel.w2, kernel.last
    new = q, k, v, *opaque._maps(*weights, q, k), position
    state = reader.kept, reader.state.H, reader.state.z
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(opaque._maps, (*weights, q, k), test_utils=tests)
    torch.library.opcheck(opaque._decode, (*held, q, k, v, position, *numbers), test_utils=tests)
    torch.library.opcheck(opaque._step, (*held, *state, *new, *numbers), test_utils=tests)


# --- feature maps -----------------------------------------------------------------------------


@few
@given(
    cases(max_length=9),
    st.sampled_from([(4, 8), (8, 40), (32, 100)]),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_maps_of_a_step(case, sizes, compute):
    rank, hidden = sizes
    kernel = strong_kernel(case, kernel_size=rank, hidden_size=hidden, compute_dtype=compute)
    kernel = PackedKernel(kernel.to(DEVICE))
    q, k, _ = (x.to(DEVICE) for x in case.qkv)
    expected = kernel.phi(q), kernel.psi(k)
    for mine, truth in zip(maps.features(kernel, q, k), expected, strict=True):
        # The first product is rounded to the compute type, and a sum may fall on either side.
        near = 1e-5 if compute == torch.float32 else 2e-2
        torch.testing.assert_close(mine, truth, rtol=0, atol=near * max(1, float(truth.max())))


# --- linear attention -------------------------------------------------------------------------


@few
@given(
    st.integers(1, 40), st.sampled_from([(1, 1), (2, 2), (4, 2), (3, 1)]),
    st.sampled_from([1, 5, 8, 32]), st.sampled_from([4, 16, 80]), st.integers(0, 2**20),
)  # fmt: skip
@example(length=24, heads=(2, 1), rank=32, size=128, seed=0)
def test_linear_attention_and_its_gradients(length, heads, rank, size, seed):
    shapes = (heads[0], rank), (heads[1], rank), (heads[1], size)
    leaves = [
        randn(2, count, length, width, seed=seed + i).to(DEVICE).requires_grad_()
        for i, (count, width) in enumerate(shapes)
    ]
    weights = [
        randn(2, heads[0], length, *rest, seed=seed + 3).to(DEVICE) for rest in ((size,), ())
    ]

    def everything(linear_attention):
        parts = linear_attention(*leaves)
        loss = sum((part * weight).sum() for part, weight in zip(parts, weights, strict=True))
        return [*parts, *torch.autograd.grad(loss, leaves)]

    mine, truth = everything(gpu_linear.linear_attention), everything(low_rank.linear_attention)
    for a, b in zip(mine, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.detach().abs().max() + 1))


def test_training_takes_the_linear_attention_of_its_device():
    """What a layer's loss is made of, on a GPU and on a CPU, with what a prompt's cut left."""
    phi, psi, v = (
        randn(1, n, t, w, seed=n + t).abs() for n, t, w in ((4, 9, 4), (2, 14, 4), (2, 14, 8))
    )
    phi, psi, v = (x.to(DEVICE) for x in (phi, psi, v))
    found = []
    for ops in (gpu, reference):
        leaves = [x.clone().requires_grad_() for x in (phi, psi)]
        with mock.patch.object(synthesis, "backend", return_value=ops):
            parts = synthesis.low_rank_part(*leaves, v, initial=5)
        found.append([*parts, *torch.autograd.grad(sum(p.sum() for p in parts), leaves)])
    torch.testing.assert_close(found[0], found[1], **CLOSE)


# --- eviction and sparse attention over a sequence --------------------------------------------


@few
@given(cases(max_length=24), st.sampled_from([5, 256]))
@real_cases(block=256)
def test_evictions_equal_the_loop(case, block):
    q, k, _ = (x.to(DEVICE) for x in case.sets)
    with mock.patch.object(scan, "QUERY_BLOCK", block):
        times = gpu_sequence.evict(q, k, case.policy, case.scores, case.prompt).cpu()
    assert times.dtype == torch.int32
    truth = reference.evict(*case.sets[:2], case.policy, case.scores, case.prompt)
    assert_same_evictions(case, truth, times)


@few
@given(cases(max_length=24))
@real_cases()
def test_bounded_attention_equals_the_loop(case):
    q, k, v = case.sets
    case = case.but(scores="cached")
    on_device = (x.to(DEVICE) for x in (q, k, v))
    times, *read = gpu_sequence.bounded_attention(*on_device, case.policy, case.prompt)
    truth = reference.evict(q, k, case.policy, "cached", case.prompt)
    assert_same_evictions(case, truth, times.cpu())
    expected = reference.sparse_attention(q, k, v, times.cpu())
    torch.testing.assert_close([x.cpu() for x in read], list(expected), **CLOSE)


@few
@given(cases(max_length=40), st.randoms(use_true_random=False))
@real_cases(random=Random(0))
def test_sparse_attention_equals_the_mask(case, random):
    """Any times, not only those a policy makes."""
    sets = [x.to(DEVICE) for x in case.sets]
    times = [
        [random.choice([NEVER, random.randint(j + 1, case.length)]) for j in range(case.length)]
        for _ in range(len(sets[0]))
    ]
    times = torch.tensor(times, dtype=torch.int32, device=DEVICE)
    torch.testing.assert_close(
        gpu_sequence.sparse_attention(*sets, times),
        reference.sparse_attention(*sets, times),
        **CLOSE,
    )


@few
@given(cases(max_length=24))
@real_cases()
def test_synthesis_and_its_gradients(case):
    times = evicted_at(*case.qkv[:2], case.policy, case.scores, case.prompt).to(DEVICE)
    q, k, v = (x.to(DEVICE) for x in case.qkv)
    kernel, toward = strong_kernel(case).to(DEVICE), randn(*q.shape, seed=1).to(DEVICE)

    def everything(synthesize):
        kernel.zero_grad()
        out = synthesize(q, k, v, times, kernel)
        if out.grad_fn is not None:  # something was evicted
            (out * toward).sum().backward()
        return out, {name: p.grad for name, p in kernel.named_parameters()}

    (mine, grads), (truth, expected) = map(everything, (gpu.synthesize, synthesis.synthesize))
    torch.testing.assert_close(mine, truth, **CLOSE)
    for name, grad in expected.items():
        if grad is None:
            assert grads[name] is None
            continue
        largest = float(grad.abs().max())
        torch.testing.assert_close(grads[name], grad, rtol=1e-3, atol=1e-3 * largest + 1e-6)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_without_a_memory_all_is_the_sparse_policy(scale):
    """Over a sequence and step by step, whatever the logits."""
    case = Case(get_policy("h2o", 4), 1, 1, 2, 12, 4, 0, torch.float32, "cached", scale, 0)
    times = evicted_at(*case.qkv[:2], case.policy, case.scores, case.prompt).to(DEVICE)
    q, k, v = (x.to(DEVICE) for x in case.qkv)
    kernel = strong_kernel(case).to(DEVICE)
    kernel.silence()
    whole = gpu.synthesize(q, k, v, times, kernel)
    torch.testing.assert_close(whole, synthesis.sparse_part(q, k, v, times)[0], **CLOSE)
    reader, sparse = (Reader(case, torch.tensor([0]), each) for each in (kernel, None))
    for t in range(case.length):
        out, expected = reader.step(t, t + 1)[0], sparse.decode(decoding, t, t + 1)[0]
        torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)


# --- all together -----------------------------------------------------------------------------


@pytest.mark.slow
def test_kernels_compile(tmp_path):
    """For an A100, whatever is in this machine; see compiled.py."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    script = [sys.executable, Path(__file__).parents[2] / "compiled.py", "80"]
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(script, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    kernels = {
        name
        for module in gpu.MODULES
        for name, value in vars(module).items()
        if name.endswith("_kernel") and hasattr(value, "run")
    }
    assert {line[0] for line in lines} == kernels
    assert max(int(line[1]) for line in lines) <= 163 * 1024  # all there is


def test_every_operator_of_the_check_runs():
    sizes = gpu_check.Sizes(1, 4, 2, 16, 4, 8, 6, 24, torch.float32)
    operators = gpu_check.decode_operators(sizes, DEVICE)
    operators += gpu_check.sequence_operators(sizes, DEVICE)
    for operator in operators:
        operator.run()
        assert min(operator.moved, operator.operations) > 0
    assert len({operator.name for operator in operators}) == 12


def test_the_check_times_whole_steps():
    fields = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16,
              "num_attention_heads": 2}  # fmt: skip
    weights = {"random": {"architecture": "llama", "num_key_value_heads": 2, **fields}}
    model = enable(load_model(weights, device=DEVICE))
    with torch.no_grad():
        lines = gpu_check.steps(model, gpu_check.Setting(20, 4, 2), budget=8).splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["Full", "Baseline+,", "LESS"]
    assert all(float(line.split()[-1]) > 0 for line in lines[2:])


def test_the_check_says_that_there_is_no_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main() == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_gpu_gets_these_operators():
    cuda = torch.device("cuda")
    assert backend(cuda) is gpu
    assert decode_backend(cuda) is decoding


def test_operators_on_a_cpu_need_no_triton():
    code = (
        "import sys; import pipeline.training, pipeline.synthesis, pipeline.eviction;"
        "import pipeline.ops.cpu.decode; sys.exit('triton' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
