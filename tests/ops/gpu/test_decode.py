"""The decode step in Triton against its plain reference.

On a GPU they run compiled; elsewhere in Triton's interpreter, which conftest asks for before
anything imports triton. The interpreter is slow, so cases are small and few.
"""

import copy
from unittest import mock

import pytest
import torch
from helpers import Case, assert_same_evictions, strong_kernel
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from triton_cases import CLOSE, DEVICE, Reader, few, streams, times_of

from pipeline import cache as cache_module
from pipeline.cache import LessCache, LessLayer
from pipeline.decoding.engine import Engine
from pipeline.decoding.full_cache import FullCache
from pipeline.measure.operators import untrained_kernels
from pipeline.ops.decode import decode_backend
from pipeline.ops.gpu import compiled as opaque
from pipeline.ops.gpu import decode as decoding
from pipeline.ops.packed import pack
from pipeline.ops.reference import decode as decode_reference
from pipeline.ops.reference import sequence as reference
from pipeline.ops.slots import by_head
from pipeline.policies import get_policy
from pipeline.synthesis import correct
from pipeline.transformer.interface import enable
from pipeline.transformer.weights import load_model


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
