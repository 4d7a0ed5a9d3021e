"""Pixels as the decoder leaves them -> RGB, on the device."""

import jax.numpy as jnp
from jaxtyping import Array, UInt8

# ITU-R BT.601 in limited range, times 2^13: 255/219 for luma, then red from V, green from U and V, blue from U. These
# are FFmpeg's 16-bit integers, and the floors below are its vector instructions': the same RGB to the last bit.
_LUMA, _RED_V, _GREEN_U, _GREEN_V, _BLUE_U = 9539, 13075, -3209, -6660, 16525


def planes_to_rgb(planes: UInt8[Array, "*B n"], height: int, width: int) -> UInt8[Array, "*B h w 3"]:
    """YUV 4:2:0 planes as `data.clips.decode_frames` gives them, as RGB; equal to FFmpeg's conversion.

    Each colour difference serves its four pixels as it is.

    Args:
        planes: `[..., 1.5 H W]`: luma, blue difference U, red difference V.
        height, width: of the picture, both even.

    Raises:
        ValueError: the planes are of another size.
    """
    if height % 2 or width % 2 or planes.shape[-1] * 2 != 3 * height * width:
        raise ValueError(f"{planes.shape[-1]} bytes are no YUV 4:2:0 picture of {width}x{height}")
    batch, pixels, small = planes.shape[:-1], height * width, (height // 2, width // 2)
    luma = planes[..., :pixels].reshape(*batch, height, width).astype(jnp.int32) - 16
    blue, red = (
        planes[..., pixels + part * pixels // 4 :][..., : pixels // 4].reshape(*batch, *small).astype(jnp.int32) - 128
        for part in (0, 1)
    )

    def floor(values: Array, factor: int) -> Array:
        return values * factor >> 13

    def spread(values: Array) -> Array:
        values = jnp.broadcast_to(values[..., :, None, :, None], (*batch, small[0], 2, small[1], 2))
        return values.reshape(*batch, height, width)

    luma = floor(luma, _LUMA)
    differences = (floor(red, _RED_V), floor(blue, _GREEN_U) + floor(red, _GREEN_V), floor(blue, _BLUE_U))
    channels = [luma + spread(values) for values in differences]
    return jnp.clip(jnp.stack(channels, axis=-1), 0, 255).astype(jnp.uint8)
