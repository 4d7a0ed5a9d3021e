"""AST against the class of Hugging Face's transformers, an implementation that shares no line with ours."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from synchformer_jax.convert import published
from synchformer_jax.models import AST, model_config
from tests.parity import relative

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# What transformers 5 calls parts in memory; files, and transformers 4, have the names on the right.
RENAMED = {
    "layers": "encoder.layer",
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def file_name(name: str) -> str:
    for new, old in RENAMED.items():
        name = re.sub(rf"(^|\.){re.escape(new)}(?=\.)", rf"\1{old}", name)
    return f"ast.{name}"


@pytest.mark.parametrize(
    ("width", "depth", "heads"),
    [(64, 3, 4), pytest.param(768, 12, 12, marks=pytest.mark.slow)],
    ids=["small", "full size"],
)
def test_tokens_equal_those_of_transformers(width, depth, heads):
    torch.manual_seed(0)
    sizes = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads}
    config = transformers.ASTConfig(
        **sizes, intermediate_size=4 * width, max_length=66, num_mel_bins=128, attn_implementation="eager"
    )
    theirs = transformers.ASTModel(config).eval()
    with torch.no_grad():
        for value in theirs.parameters():  # fresh ones are so small that blocks hardly count
            value.normal_(std=0.5 if value.ndim < 2 or value.shape[0] == 1 else value[0].numel() ** -0.5)
    weights = {file_name(name): value.numpy() for name, value in theirs.state_dict().items()}
    assert weights["ast.embeddings.position_embeddings"].shape == (1, 74, width)

    config = model_config("B")
    config.compute.dtype = "float32"
    config.audio.update(width=width, depth=depth, heads=heads)
    ours = nnx.eval_shape(lambda: AST(config, nnx.Rngs(0)))
    shapes = published.shapes(ours)
    own = {name: np.zeros(shape, np.float32) for name, shape in shapes.items() if name.startswith("freq_attn_agg.")}
    ours = nnx.merge(nnx.split(ours)[0], published.to_state(ours, weights | own))
    ours.pool = nnx.static(lambda x, keep: x.reshape(len(x), -1))  # theirs ends before the tokens are summed up

    log_mel = np.random.default_rng(0).normal(size=(2, 128, 66)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(log_mel).transpose(1, 2)).last_hidden_state[:, 2:].numpy()
    expected = expected.reshape(2, 12, 6, width).swapaxes(1, 2)
    found = np.asarray(nnx.jit(lambda model, x: model(x))(ours, jnp.asarray(log_mel[None])))
    assert relative(found.reshape(2, 6, 12, width), expected) < 1e-4
