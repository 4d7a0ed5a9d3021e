"""Divided, joint and trajectory attention against loops in plain NumPy."""

import jax
import numpy as np
import pytest
from flax import nnx

from synchformer_jax.models import Motionformer, model_config
from synchformer_jax.models.layers import Attention, attend
from synchformer_jax.models.space_time import TrajectoryAttention, divided_attention

TIME, PLACES, HEADS, EACH = 3, 4, 2, 8
TOKENS = 1 + TIME * PLACES


@pytest.fixture(scope="module")
def qkv():
    rng = np.random.default_rng(0)
    return tuple(rng.normal(size=(2, TOKENS, HEADS, EACH)).astype(np.float32) for _ in range(3))


@pytest.fixture(scope="module")
def mask():
    mask = np.random.default_rng(1).uniform(size=(2, TOKENS)) > 0.4
    mask[:, 0] = True
    return mask


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def token_by_token(q, k, v, sees):
    """Attention with a loop over everything; `sees(i, j)` says whether token i may look at token j."""
    out = np.zeros_like(q)
    for b, i, h in np.ndindex(q.shape[:3]):
        js = [j for j in range(k.shape[1]) if sees(b, i, j)]
        weights = softmax(np.array([q[b, i, h] @ k[b, j, h] for j in js]) / np.sqrt(q.shape[-1]))
        out[b, i, h] = sum(w * v[b, j, h] for w, j in zip(weights, js, strict=True))
    return out


def linear(layer, x):
    kernel, bias = np.asarray(layer.kernel[...]), np.asarray(layer.bias[...])
    return (x @ kernel.reshape(x.shape[-1], -1)).reshape(*x.shape[:-1], *bias.shape) + bias


def group(token, axis):
    return (token - 1) % PLACES if axis == "time" else (token - 1) // PLACES


@pytest.mark.parametrize("axis", ["time", "space"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("implementation", ["einsum", "xla"])
def test_divided_attention(mask, axis, masked, implementation):
    def sees(b, i, j):
        kept = mask[b, j] if masked else True
        return kept and (i == 0 or j == 0 or group(i, axis) == group(j, axis))

    width = HEADS * EACH
    rngs = nnx.Rngs(jax.random.key(0, impl="unsafe_rbg"))
    module = Attention(width, HEADS, dtype=np.float32, implementation=implementation, rngs=rngs)
    for layer in (module.qkv, module.out):
        layer.bias[...] = jax.random.normal(jax.random.key(1), layer.bias.shape)
    x = np.random.default_rng(2).normal(size=(2, TOKENS, width)).astype(np.float32)
    q, k, v = np.moveaxis(linear(module.qkv, x), 2, 0)
    found = token_by_token(q, k, v, sees).reshape(x.shape)
    expected = linear(module.out, found)
    given = mask[:, 1:].reshape(2, TIME, PLACES) if masked else None
    call = nnx.jit(lambda module, cls, x: divided_attention(module, cls, x, axis, given))
    of_cls, ours = call(module, x[:, :1], x[:, 1:].reshape(2, TIME, PLACES, width))
    np.testing.assert_allclose(of_cls, expected[:, :1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours.reshape(2, -1, width), expected[:, 1:], rtol=1e-4, atol=1e-5)


def test_joint_attention(qkv, mask):
    expected = token_by_token(*qkv, lambda b, i, j: mask[b, j])
    for implementation in ("einsum", "xla"):
        ours = attend(*qkv, mask[:, None, None], implementation=implementation)
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("project_values", [False, True])
def test_trajectory_attention(project_values):
    """Equations 5 to 8 of arXiv 2106.05392, one token at a time."""
    width = HEADS * EACH
    rngs = nnx.Rngs(jax.random.key(0, impl="unsafe_rbg"))
    module = TrajectoryAttention(width, HEADS, dtype=np.float32, project_values=project_values, rngs=rngs)
    x = np.random.default_rng(2).normal(size=(1, TOKENS, width)).astype(np.float32)

    qkv = linear(module.qkv, x[0])
    q, k, v = qkv[:, 0], qkv[:, 1], qkv[:, 2]
    out = np.zeros((TOKENS, HEADS, EACH), np.float32)
    out[0] = token_by_token(q[None], k[None], v[None], lambda *_: True)[0, 0]
    for i in range(1, TOKENS):
        along = np.zeros((TIME, HEADS, EACH), np.float32)
        for f in range(TIME):
            js = range(1 + f * PLACES, 1 + (f + 1) * PLACES)
            for h in range(HEADS):
                weights = softmax(np.array([q[i, h] @ k[j, h] for j in js]) / np.sqrt(EACH))
                along[f, h] = sum(w * v[j, h] for w, j in zip(weights, js, strict=True))
        q2 = linear(module.along_q, along[(i - 1) // PLACES].reshape(-1))
        kv2 = linear(module.along_kv, along.reshape(TIME, -1))
        values = kv2[:, 1] if project_values else along
        for h in range(HEADS):
            weights = softmax(kv2[:, 0, h] @ q2[h] / np.sqrt(EACH))
            out[i, h] = weights @ values[:, h]
    expected = out.reshape(TOKENS, width) @ np.asarray(module.out.kernel[...]).reshape(width, width)
    ours = jax.jit(lambda x: module(x, TIME))(x)
    np.testing.assert_allclose(ours[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("attention", "position"), [("joint", "joint"), ("trajectory", "separate")])
def test_motionformer_with_other_attention(attention, position):
    config = model_config("Ti")
    config.visual.update(image_size=32, tubelet=4, width=16, depth=1, heads=2, attention=attention, position=position)
    config.compute.dtype = "float32"
    model = Motionformer(config, nnx.Rngs(jax.random.key(0, impl="unsafe_rbg")))
    frames = np.random.default_rng(3).normal(size=(1, 1, 16, 32, 32, 3)).astype(np.float32)
    mask = np.ones(frames.shape[:-1], bool)
    mask[0, 0, 4:8] = False
    call = nnx.jit(lambda model, frames, mask: model(frames, mask))
    out = np.asarray(call(model, frames, mask))
    assert out.shape == (1, 1, 4, 16)
    assert np.isfinite(out).all()
    changed = frames + 2 * ~mask[..., None]
    different = np.abs(np.asarray(call(model, changed, mask)) - out).max(axis=(0, 1, 3))
    assert different[[0, 2, 3]].max() < 1e-5
