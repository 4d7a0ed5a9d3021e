"""Fresh tubelet and position embeddings that already see something: cosines."""

import math

import numpy as np

LUMA = np.array([0.299, 0.587, 0.114])
PIXEL_STD = 0.5  # of natural frames in [-1, 1]


def dct_kernel(shape: tuple[int, int, int, int], width: int) -> np.ndarray:
    """A tubelet embedding of low 3D cosine frequencies, `[frames, height, width, 3, D]` float32.

    Each output is one basis function over time, height, width and one of luma and two colour differences; lowest
    frequencies come first, time and colour count double since a picture changes less along them. Each is scaled by
    the inverse of the amplitude that pictures with a 1/f spectrum have there, so that outputs have about unit
    variance. Narrow models learn from it at once where a random projection shows them mostly mean brightness.

    Raises:
        ValueError: more outputs than basis functions.
    """
    frames, height, length, _ = shape
    if width > math.prod(shape):
        raise ValueError(f"{width} outputs for {math.prod(shape)} inputs")
    grid = np.meshgrid(np.arange(frames), np.arange(height), np.arange(length), np.arange(3), indexing="ij")
    in_time, in_height, in_width, colour = (axis.ravel() for axis in grid)
    frequency = np.sqrt((2 * in_time) ** 2 + in_height**2 + in_width**2)
    order = np.argsort((1 + frequency) * np.where(colour > 0, 2, 1), kind="stable")[:width]
    bases = [_dct(size) for size in (frames, height, length)]
    opponent = _opponent()
    kernel = np.einsum(
        "td,hd,wd,cd->thwcd",
        bases[0][:, in_time[order]],
        bases[1][:, in_height[order]],
        bases[2][:, in_width[order]],
        opponent[:, colour[order]],
    )
    # Amplitudes 1 / (1 + f) share the variance of all pixels of a block among its basis functions.
    amplitude = 1 / (1 + frequency) * np.where(colour > 0, 0.25, 1)
    amplitude *= PIXEL_STD * math.sqrt(math.prod(shape)) / np.sqrt(np.square(amplitude).sum())
    return (kernel / amplitude[order]).astype(np.float32)


def sinusoid(count: int, width: int) -> np.ndarray:
    """Position embeddings `[count, width]` float32: sines and cosines of geometric wavelengths up to 4 `count`."""
    pairs = (width + 1) // 2
    wavelength = 2 * (2 * count) ** (np.arange(pairs) / max(pairs - 1, 1))
    angle = 2 * np.pi * np.arange(count)[:, None] / wavelength
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)[:, :width].astype(np.float32)


def _dct(size: int) -> np.ndarray:
    """The orthonormal DCT-II basis, one function a column."""
    place, frequency = np.arange(size)[:, None] + 0.5, np.arange(size)[None, :]
    basis = np.cos(np.pi * place * frequency / size) * math.sqrt(2 / size)
    basis[:, 0] /= math.sqrt(2)
    return basis


def _opponent() -> np.ndarray:
    """Orthonormal colour axes, one a column: brightness, blue against it, red against green."""
    blue = np.array([-0.5, -0.5, 1.0])
    columns = [LUMA]
    for axis in (blue, np.array([1.0, -1.0, 0.0])):
        for column in columns:
            axis = axis - column * (axis @ column) / (column @ column)
        columns.append(axis)
    return np.stack([column / np.linalg.norm(column) for column in columns], axis=1)
