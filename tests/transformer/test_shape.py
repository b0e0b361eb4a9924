"""The numbers of a model, of every architecture."""

import pytest

from pipeline.transformer.shape import Shape, model_shape
from pipeline.transformer.weights import (
    load_model,
)

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def random_weights(architecture="llama", seed=0, **fields):
    return {"random": {"architecture": architecture, **SMALL, **fields}, "seed": seed}


@pytest.mark.parametrize(
    ("architecture", "fields", "kv_heads", "head_dim"),
    [
        ("llama", {}, 4, 8),
        ("llama", {"num_key_value_heads": 2, "head_dim": 16}, 2, 16),
        ("mistral", {"num_key_value_heads": 2}, 2, 8),
        ("qwen2", {"num_key_value_heads": 1}, 1, 8),
        ("gpt_neox", {}, 4, 8),
        ("falcon", {"multi_query": True}, 1, 8),
        ("falcon", {"multi_query": False}, 4, 8),
        ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}, 2, 8),
    ],
)
def test_shapes(architecture, fields, kv_heads, head_dim):
    if architecture == "mistral":  # whose own head size is not hidden_size / heads
        fields["head_dim"] = head_dim
    model = load_model(random_weights(architecture, max_position_embeddings=64, **fields))
    assert model_shape(model.config) == Shape(2, 4, kv_heads, head_dim, 32, 64)
