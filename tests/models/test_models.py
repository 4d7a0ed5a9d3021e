"""What small models do: shapes, masks, randomness, sizes, options."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from synchformer_jax.errors import UserError
from synchformer_jax.models import AST, SegmentAVCLIP, SyncHead, Synchformer, Synchronizability, model_config
from synchformer_jax.models.layers import Mlp, logical_axes, scan, stack


def small_config(**visual):
    config = model_config("Ti")
    config.segments = 2
    config.visual.update(image_size=32, tubelet=4, width=32, depth=2, heads=2, **visual)
    config.audio.update(width=32, depth=2, heads=2)
    config.head.update(width=32, depth=2, heads=2)
    config.compute.dtype = "float32"
    return config


def make(kind, config, seed=0):
    """Fresh weights; this kind of key compiles fastest."""
    return kind(config, nnx.Rngs(jax.random.key(seed, impl="unsafe_rbg")))


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).uniform(-1, 1, (2, 2, 16, 32, 32, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def log_mel():
    return np.random.default_rng(1).normal(size=(2, 2, 128, 66)).astype(np.float32)


@pytest.fixture(scope="module")
def sync():
    config = small_config()
    config.head.lag_profile = True
    return make(Synchformer, config)


@pytest.fixture(scope="module")
def run(sync):
    """A compiled call of a part of the model: run("visual", x, mask, key)."""
    graph, state = nnx.split(sync)

    def go(part, *args, key=None):
        pick = (lambda m: m) if part == "all" else (lambda m: getattr(m, part))
        if part not in compiled:
            compiled[part] = jax.jit(lambda state, args, key: pick(nnx.merge(graph, state))(*args, key=key))
        return np.asarray(compiled[part](state, args, key))

    compiled = {}
    return go


def test_shapes(run, frames, log_mel):
    """Parts give what the whole gives."""
    visual, audio = run("visual", frames), run("audio", log_mel)
    assert visual.shape == (2, 2, 4, 32)
    assert audio.shape == (2, 2, 6, 32)
    assert run("head", visual, audio).shape == (2, 21)
    np.testing.assert_allclose(run("all", frames, log_mel), run("head", visual, audio), rtol=2e-4, atol=2e-5)


def test_segments_do_not_see_each_other(run, frames, log_mel):
    for part, x in (("visual", frames), ("audio", log_mel)):
        changed = x.copy()
        changed[:, 1] += 1
        before, after = run(part, x), run(part, changed)
        np.testing.assert_allclose(after[:, 0], before[:, 0], atol=1e-5)
        assert np.abs(after[:, 1] - before[:, 1]).max() > 1e-2


def test_masked_values_do_not_matter_elsewhere(run, frames):
    """What lies under the mask changes only the tokens of its own time, which the mask drops from the sums."""
    mask = np.ones(frames.shape[:-1], bool)
    mask[:, :, :, 16:, :] = False  # the lower half, at all times
    changed = np.where(mask[..., None], frames, frames + 3)
    np.testing.assert_allclose(run("visual", changed, mask), run("visual", frames, mask), atol=1e-5)
    assert np.abs(run("visual", changed) - run("visual", frames)).max() > 1e-2
    everything = np.ones_like(mask)
    np.testing.assert_allclose(run("visual", frames, everything), run("visual", frames), atol=1e-5)


def test_masked_sound_does_not_matter_elsewhere(run, log_mel):
    mask = np.ones(log_mel.shape, bool)
    mask[:, :, 64:] = False
    changed = np.where(mask, log_mel, log_mel + 3)
    np.testing.assert_allclose(run("audio", changed, mask), run("audio", log_mel, mask), atol=1e-5)
    # patches reach 16 bins from multiples of 10: hiding bins from 64 on equals hiding them from 60 on
    wider = mask.copy()
    wider[:, :, 60:] = False
    np.testing.assert_allclose(run("audio", log_mel, wider), run("audio", log_mel, mask), atol=1e-6)


def test_randomness_comes_from_the_key_alone(run, frames, log_mel):
    key = jax.random.key(7)
    plain = run("all", frames, log_mel)
    np.testing.assert_array_equal(run("all", frames, log_mel), plain)
    dropped = run("all", frames, log_mel, key=key)
    np.testing.assert_array_equal(run("all", frames, log_mel, key=key), dropped)
    assert np.abs(dropped - plain).max() > 1e-3
    assert np.abs(run("all", frames, log_mel, key=jax.random.key(8)) - dropped).max() > 1e-3


def test_other_frame_sizes_interpolate_positions(sync):
    given = jax.ShapeDtypeStruct((1, 1, 16, 48, 32, 3), np.float32)
    assert nnx.eval_shape(lambda model, x: model.visual(x), sync, given).shape == (1, 1, 4, 32)
    table = np.asarray(sync.visual.position[...])
    when = np.asarray(sync.visual.position_time[...])
    own = np.asarray(sync.visual.positions((4, 2, 2)))
    np.testing.assert_allclose(own, np.concatenate([table[:1], *(table[1:] + row for row in when)]), rtol=1e-6)
    larger = np.asarray(sync.visual.positions((4, 2, 6)))
    assert larger.shape == (1 + 4 * 2 * 6, 32)
    np.testing.assert_array_equal(larger[0], table[0])
    # three times as many columns: the middle one of three sits on the old column
    np.testing.assert_allclose(larger[1:].reshape(4, 2, 6, 32)[:, :, [1, 4]].reshape(-1, 32), own[1:], atol=1e-6)
    given = jax.ShapeDtypeStruct((1, 1, 128, 46), np.float32)
    assert nnx.eval_shape(lambda model, x: model.audio(x), sync, given).shape == (1, 1, 4, 32)


def test_frames_that_do_not_divide(sync):
    with pytest.raises(ValueError, match="30 x 32 do not divide into blocks of 4 x 16 x 16"):
        sync.visual(np.zeros((1, 1, 16, 30, 32, 3), np.float32))


def test_the_head_names_what_does_not_fit(sync):
    with pytest.raises(
        UserError, match=r"got 3 visual and 3 audio segments of 4 and 6 tokens.*positions for 2 of 4 and 6"
    ):
        sync.head(np.zeros((1, 3, 4, 32)), np.zeros((1, 3, 6, 32)))


def test_avclip_is_of_unit_length_and_the_temperature_is_clamped(frames, log_mel):
    config = small_config()
    config.visual.depth = config.audio.depth = 1
    model = make(SegmentAVCLIP, config)
    visual, audio = nnx.jit(model)(frames, log_mel)
    assert visual.shape == audio.shape == (2, 2, 32)
    np.testing.assert_allclose(np.linalg.norm(visual, axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(audio, axis=-1), 1, rtol=1e-5)
    for value, clamped in ((0.07, 0.07), (0.7, 0.5), (-1.0, 0.001)):
        model.logit_scale[...] = jnp.asarray(value)
        np.testing.assert_allclose(model.temperature(), clamped, rtol=1e-5)
        gradient = nnx.grad(lambda m: m.temperature())(model).logit_scale[...]
        np.testing.assert_allclose(gradient, 1)


@pytest.mark.parametrize(("size", "depth", "d"), [("Ti", 12, 192), ("S", 12, 384), ("B", 12, 768), ("L", 24, 1024)])
def test_sizes(size, depth, d):
    """The number of parameters, term by term."""
    model = nnx.eval_shape(lambda: Synchformer(model_config(size), nnx.Rngs(0)))
    block = 12 * d**2 + 13 * d  # attention, MLP, two norms
    pool = block + d
    visual = (2 * 16 * 16 * 3 + 1) * d + (1 + 197 + 8) * d + depth * (block + 4 * d**2 + 6 * d) + 2 * d + pool
    audio = (16 * 16 + 1) * d + (2 + 74) * d + depth * block + 2 * d + pool
    head = 2 * (d**2 + d) + 4 * d + (2 + 198) * d + 3 * block + 2 * d + 21 * (d + 1)
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model))) == visual + audio + head


def test_synchronizability_has_two_classes_and_184_positions():
    model = nnx.eval_shape(lambda: Synchronizability(model_config("B"), nnx.Rngs(0)))
    assert model.head.position.shape == (184, 768)
    assert model.head.classify.kernel.shape == (768, 2)


def test_every_parameter_names_its_axes():
    model = nnx.eval_shape(lambda: Synchformer(small_config(), nnx.Rngs(0)))
    seen = set()
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        axes = logical_axes(variable)
        assert len(axes) == len(variable.shape), path
        assert ("layers" in axes) == ("blocks" in path), path
        seen |= set(axes)
    assert seen == {"layers", "embed", "mlp", "heads", "vocab", None}
    assert logical_axes(model.visual.blocks.time.qkv.kernel) == ("layers", "embed", None, "heads", None)


def test_layers_differ_and_remat_and_unrolling_change_nothing():
    def layer(rngs):
        return Mlp(8, 16, dtype=jnp.dtype("float32"), rngs=rngs)

    graph, state = nnx.split(stack(layer, 3, nnx.Rngs(jax.random.key(0, impl="unsafe_rbg"))))
    kernels = state["up"]["kernel"][...]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.1
    x = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)

    def value_and_gradient(**options):
        def loss(state):
            return jnp.square(scan(nnx.merge(graph, state), x, lambda layer, x, key: x + layer(x), **options)).mean()

        return jax.jit(jax.value_and_grad(loss))(state)

    plain = value_and_gradient()
    by_hand = x
    for i in range(3):
        by_hand = by_hand + nnx.merge(graph, jax.tree.map(operator.itemgetter(i), state))(by_hand)
    np.testing.assert_allclose(plain[0], jnp.square(by_hand).mean(), rtol=1e-5)
    for options in ({"remat": "full"}, {"remat": "dots"}, {"unroll": True}):
        other = value_and_gradient(**options)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), other, plain)


def test_bfloat16_stays_close(sync, run, log_mel):
    config = small_config()
    config.compute.dtype = "bfloat16"
    graph, _ = nnx.split(nnx.eval_shape(lambda: AST(config, nnx.Rngs(0))))
    state = nnx.state(sync.audio)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}
    half = jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, log_mel)
    assert half.dtype == jnp.bfloat16
    full = run("audio", log_mel)
    difference = np.abs(np.asarray(half, np.float32) - full)
    assert 0 < difference.mean() < 0.02 * np.abs(full).mean()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("visual.attention", "none", r"model.visual.attention is 'none'.*divided, joint, trajectory"),
        ("visual.heads", 3, r"model.visual.width is 32.*model.visual.heads = 3"),
        ("visual.image_size", 40, r"model.visual.image_size is 40.*multiple of model.visual.patch_size = 16"),
        ("visual.tubelet", 3, r"model.visual.frames is 16.*multiple of model.visual.tubelet = 3"),
        ("audio.frames", 10, r"model.audio.frames is 10"),
        ("compute.dtype", "float8", r"model.compute.dtype is 'float8'"),
        ("head.depth", 0, r"model.head.depth is 0"),
    ],
)
def test_bad_configurations_name_the_field(field, value, message):
    config = small_config()
    part, name = field.split(".")
    config[part][name] = value
    with pytest.raises(UserError, match=message):
        nnx.eval_shape(lambda: SyncHead(config, nnx.Rngs(0)))


def test_unknown_size():
    with pytest.raises(UserError, match=r"no model size 'XL'.*Ti, S, B, L"):
        model_config("XL")
