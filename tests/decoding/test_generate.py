import pytest

from pipeline.__main__ import main
from pipeline.cache import LessCache
from pipeline.decoding.generate import Decoding, generate
from pipeline.errors import ConfigError
from pipeline.kernels import get_kernel
from pipeline.policies import get_policy
from pipeline.training.checkpoint import save_kernels
from pipeline.transformer.interface import enable
from pipeline.transformer.shape import Heads
from pipeline.transformer.weights import byte_tokenizer, load_model, materialise

RANDOM = {
    "random": {
        "architecture": "llama", "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    },
    "seed": 0,
}  # fmt: skip
PROMPTS = ["A river", "A river runs through the town"]


@pytest.fixture(scope="module")
def model():
    return enable(load_model(RANDOM))


def run(model, cache=None, prompts=PROMPTS, **options):
    return generate(model, byte_tokenizer(), prompts, Decoding(**options), cache)


def test_batch_equals_each_alone(model):
    def cache():
        return LessCache(model.config, get_policy("h2o", 6))

    together = run(model, cache(), max_new_tokens=12)
    alone = [run(model, cache(), [p], max_new_tokens=12) for p in PROMPTS]
    assert together.texts == [one.texts[0] for one in alone]
    assert together.prompt_tokens == [len(p) for p in PROMPTS]
    assert together.new_tokens == [one.new_tokens[0] for one in alone]


def test_bytes_of_both_caches(model):
    cache = LessCache(model.config, get_policy("lambda", 6))
    bounded, full = run(model, cache, max_new_tokens=9), run(model, max_new_tokens=9)
    assert bounded.cache_bytes == sum(cache.memory().values())
    held = len(PROMPTS[1]) + 9 - 1
    assert full.cache_bytes == full.full_bytes == bounded.full_bytes
    assert full.full_bytes == 2 * 2 * 2 * 2 * 8 * held * 4  # batch, layers, heads, k and v


def test_sampling_is_a_function_of_the_seed(model):
    first, same, other = (
        run(model, max_new_tokens=16, temperature=1.0, seed=seed).texts for seed in (1, 1, 2)
    )
    assert first == same != other


def test_every_prompt_has_a_seed_of_its_own(model):
    decoding = Decoding(max_new_tokens=4, temperature=1.0)
    with pytest.raises(ConfigError, match="2 prompts have 1 seeds"):
        generate(model, byte_tokenizer(), PROMPTS, decoding, seeds=[7])


def test_stop_text_ends_and_is_cut_off(model):
    whole = run(model, prompts=PROMPTS[:1], max_new_tokens=30)
    stop = whole.texts[0][10:12]
    stopped = run(model, prompts=PROMPTS[:1], max_new_tokens=30, stop=stop)
    assert stopped.texts == [whole.texts[0].partition(stop)[0]]
    assert stopped.new_tokens[0] < whole.new_tokens[0]
    # In a batch what follows a stop is padding, and not counted.
    together = run(model, prompts=PROMPTS, max_new_tokens=30, stop=stop)
    assert together.new_tokens[0] == stopped.new_tokens[0]
    # Not to be found: the text stays whole.
    assert run(model, prompts=PROMPTS[:1], max_new_tokens=30, stop="#!#").texts == whole.texts


def test_command(tmp_path, capsys):
    folder = tmp_path / "model"
    materialise(RANDOM, folder)
    heads, build = Heads(4, 2, 8), {"kernel_size": 8, "hidden_size": 16}
    kernels = {i: get_kernel("less", **vars(heads), **build) for i in range(2)}
    save_kernels(tmp_path / "kernels.safetensors", kernels, "less", heads, build)
    common = ["generate", "--model", str(folder), "--max-new-tokens", "8", "--prompt", PROMPTS[1]]
    bounded = ["--policy", "h2o", "--budget", "6"]
    with_kernels = [*bounded, "--kernels", str(tmp_path / "kernels.safetensors")]
    for extra in ([], bounded, with_kernels, [*with_kernels, "--prefill-chunk", "5"]):
        assert main([*common, *extra]) == 0
        assert f"{len(PROMPTS[1])} + 8 tokens" in capsys.readouterr().err
    assert main([*common, "--prefill-chunk", "5"]) == 1
    assert "need a --policy" in capsys.readouterr().err
    assert main([*common, "--policy", "h20"]) == 1
    assert "did you mean 'h2o'" in capsys.readouterr().err
