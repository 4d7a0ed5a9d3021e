"""Published names and layouts, in and out."""

import json

import jax
import numpy as np
import pytest
from flax import nnx

from synchformer_jax.convert import published
from synchformer_jax.errors import UserError
from synchformer_jax.models import AST, Motionformer, SegmentAVCLIP, Synchformer, Synchronizability, model_config
from tests.parity import DATA


def small_config():
    config = model_config("Ti")
    config.segments = 2
    config.visual.update(image_size=32, width=16, depth=2, heads=2)
    config.audio.update(width=16, depth=2, heads=2)
    config.head.update(width=16, depth=2, heads=2)
    return config


def abstract(kind, config):
    return nnx.eval_shape(lambda: kind(config, nnx.Rngs(0)))


def random_arrays(model):
    rng = np.random.default_rng(0)
    return {k: rng.standard_normal(shape, np.float32) for k, shape in published.shapes(model).items()}


def loaded(model, arrays):
    graph, _ = nnx.split(model)
    return nnx.merge(graph, published.to_state(model, arrays))


@pytest.mark.parametrize(
    ("kind", "keys"),
    [(Synchformer, "synchformer"), (Synchronizability, "synchronizability"), (SegmentAVCLIP, "avclip")],
)
def test_names_and_shapes_at_full_size(kind, keys):
    expected = {k: tuple(v) for k, v in json.loads((DATA / f"keys_{keys}.json").read_text()).items()}
    assert published.shapes(abstract(kind, model_config("B"))) == expected


def test_parameter_count_of_the_sync_model():
    assert published.count(abstract(Synchformer, model_config("B"))) == 237_460_245


@pytest.mark.parametrize("kind", [Synchformer, Synchronizability, SegmentAVCLIP, Motionformer, AST])
def test_round_trip_is_bitwise(kind):
    model = abstract(kind, small_config())
    arrays = random_arrays(model)
    back = published.from_state(loaded(model, arrays))
    assert set(back) == set(arrays)
    unread = published.unread_of(model)
    for name, array in arrays.items():
        if name not in unread:
            np.testing.assert_array_equal(back[name], array, err_msg=name)
    again = published.to_state(model, back)
    jax.tree.map(np.testing.assert_array_equal, again, nnx.state(loaded(model, arrays)))


@pytest.mark.parametrize("attention", ["joint", "trajectory"])
def test_other_attention_round_trips(attention):
    config = small_config()
    config.visual.update(attention=attention, position="joint" if attention == "joint" else "separate")
    model = abstract(Motionformer, config)
    arrays = random_arrays(model)
    assert ("st_embed" in arrays) == (attention == "joint")
    assert ("blocks.1.attn.proj_kv.weight" in arrays) == (attention == "trajectory")
    back = published.from_state(loaded(model, arrays))
    for name in set(arrays) - set(published.unread_of(model)):
        np.testing.assert_array_equal(back[name], arrays[name], err_msg=name)
        assert back[name].shape == arrays[name].shape


def test_every_published_array_is_read_from_its_own_place():
    """Each of our values comes from exactly one published value, so no two rules overlap and none is left out."""
    model = abstract(Synchformer, small_config())
    arrays, start = {}, 1
    for name, shape in published.shapes(model).items():
        size = int(np.prod(shape))
        arrays[name] = np.arange(start, start + size, dtype=np.float32).reshape(shape)
        start += size
    assert start < 2**24  # all numbers are exact in float32
    ours = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(published.to_state(model, arrays))])
    unread = published.unread_of(model)
    theirs = np.concatenate([array.ravel() for name, array in arrays.items() if name not in unread])
    np.testing.assert_array_equal(np.sort(ours), np.sort(theirs))


def test_the_unread_2d_embedding_is_the_tubelet_summed_over_time():
    model = abstract(Motionformer, small_config())
    arrays = random_arrays(model)
    back = published.from_state(loaded(model, arrays))
    cube = arrays["patch_embed_3d.proj.weight"]
    np.testing.assert_array_equal(back["patch_embed.proj.weight"], cube[:, :, 0] + cube[:, :, 1])
    np.testing.assert_array_equal(back["patch_embed.proj.bias"], arrays["patch_embed_3d.proj.bias"])


def test_module_prefix_and_longer_positions_are_taken(caplog):
    model = abstract(AST, small_config())
    arrays = random_arrays(model)
    name = "ast.embeddings.position_embeddings"
    longer = np.concatenate([arrays[name], np.ones((1, 1140, 16), np.float32)], axis=1)
    prefixed = {f"module.{k}": v for k, v in (arrays | {name: longer}).items()}
    back = published.from_state(loaded(model, prefixed))
    np.testing.assert_array_equal(back[name], arrays[name])


def test_what_does_not_fit_is_listed():
    model = abstract(AST, small_config())
    arrays = random_arrays(model)
    arrays["extra.weight"] = np.zeros((2, 3), np.float32)
    arrays["ast.layernorm.bias"] = np.zeros(17, np.float32)
    del arrays["freq_attn_agg.cls_token"]
    with pytest.raises(UserError) as error:
        published.to_state(model, arrays)
    lines = [line.split() for line in str(error.value).splitlines()]
    assert ["missing", "freq_attn_agg.cls_token", "(1,", "1,", "16)"] in lines
    assert ["unexpected", "extra.weight", "(2,", "3)"] in lines
    assert ["misshapen", "ast.layernorm.bias", "(16,)", "(17,)"] in lines
    assert "1 missing, 1 unexpected, 1 misshapen" in str(error.value)


def test_a_lag_profile_has_no_published_place():
    config = small_config()
    config.head.lag_profile = True
    with pytest.raises(UserError, match="lag_profile = False"):
        published.shapes(abstract(Synchformer, config))
