"""The level of whole clips: its attention pool against PyTorch's encoder layer, as the published model builds it."""

import jax
import numpy as np
import pytest
from flax import nnx

from synchformer_jax.convert import published
from synchformer_jax.errors import UserError
from synchformer_jax.models import SegmentAVCLIP, model_config
from synchformer_jax.models.avclip import ClipPool, normalise


def small(**options):
    config = model_config("Ti")
    config.segments = 3
    config.visual.update({"image_size": 32, "tubelet": 8, "width": 32, "depth": 1, "heads": 2})
    config.audio.update({"width": 32, "depth": 1, "heads": 2, "stride": 16})
    config.compute.dtype = "float32"
    config.avclip.update(options)
    return config


def inputs(segments=3):
    rng = np.random.default_rng(0)
    return (
        rng.standard_normal((2, segments, 16, 32, 32, 3)).astype(np.float32),
        rng.standard_normal((2, segments, 128, 66)).astype(np.float32),
    )


def test_the_pool_is_the_published_encoder_layer():
    torch = pytest.importorskip("torch")
    layer = torch.nn.TransformerEncoderLayer(
        32, 2, 128, 0.0, torch.nn.GELU(), layer_norm_eps=1e-6, batch_first=True, norm_first=True
    ).eval()
    generator = torch.Generator().manual_seed(0)
    weights = {k: torch.randn(v.shape, generator=generator) / 5 for k, v in layer.state_dict().items()}
    layer.load_state_dict(weights)
    cls, position = torch.randn(1, 1, 32, generator=generator), torch.randn(1, 4, 32, generator=generator)
    x = torch.randn(5, 3, 32, generator=generator)
    expected = layer(torch.cat([cls.expand(5, -1, -1), x], dim=1) + position)[:, 0].detach().numpy()

    model = nnx.eval_shape(lambda: SegmentAVCLIP(small(global_pool="attention"), nnx.Rngs(0)))
    prefix = "v_encoder.global_attn_agg."
    given = {prefix + k: v.numpy() for k, v in weights.items()}
    given |= {f"{prefix}cls_token": cls.numpy(), f"{prefix}pos_emb": position.numpy()}
    rest = {k: np.zeros(s, np.float32) for k, s in published.shapes(model).items() if k not in given}
    model = nnx.merge(nnx.graphdef(model), published.to_state(model, given | rest))
    np.testing.assert_allclose(model.global_visual(x.numpy())[:, 0], expected, rtol=1e-4, atol=1e-5)
    short = layer(torch.cat([cls.expand(5, -1, -1), x[:, :2]], dim=1) + position[:, :3])[:, 0].detach().numpy()
    np.testing.assert_allclose(model.global_visual(x[:, :2].numpy())[:, 0], short, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pool", ["mean", "attention"])
def test_levels(pool):
    model = SegmentAVCLIP(small(global_pool=pool), nnx.Rngs(0))
    levels = nnx.jit(lambda model, *x: model.embed(*x))(model, *inputs())
    assert {name: [part.shape for part in both] for name, both in levels.items()} == {
        "segment": [(2, 3, 32)] * 2,
        "global": [(2, 1, 32)] * 2,
    }
    np.testing.assert_allclose(np.linalg.norm(levels["global"][0], axis=-1), 1, rtol=1e-5)
    if pool == "mean":
        # The mean of the segments before they are scaled to unit length.
        features = model.visual(inputs()[0]).mean(axis=2).mean(axis=1, keepdims=True)
        np.testing.assert_allclose(levels["global"][0], normalise(features), rtol=1e-4, atol=1e-6)
    assert model.temperature("global") == pytest.approx(0.07)
    names = published.shapes(model)
    assert {"segment_logit_scale", "global_logit_scale"} < set(names) and "logit_scale" not in names


def test_more_segments_than_positions():
    pool = ClipPool(small(global_pool="attention"), "visual", nnx.Rngs(0))
    with pytest.raises(ValueError, match="4 segments, but positions for 3"):
        pool(np.zeros((1, 4, 32), np.float32))


def test_the_sigmoid_loss_begins_with_siglips_scale_and_bias():
    model = SegmentAVCLIP(small(loss="sigmoid"), nnx.Rngs(0))
    assert model.temperature() == pytest.approx(0.1) and model.bias() == -10
    assert jax.tree.leaves(nnx.grad(lambda m: m.temperature())(model).log_scale)[0] == pytest.approx(-0.1)
    with pytest.raises(UserError, match=r"sigmoid loss.*model.avclip.loss = info_nce"):
        published.shapes(model)


def test_streams_of_two_widths_cannot_be_compared():
    config = small()
    config.audio.update({"width": 64})
    with pytest.raises(UserError, match=r"model.visual.width is 32 and model.audio.width 64"):
        SegmentAVCLIP(config, nnx.Rngs(0))
