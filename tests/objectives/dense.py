"""The contrastive losses and their gradients as the papers print them: whole matrices in NumPy, float64."""

import numpy as np


def unit(rng, *shape):
    values = rng.standard_normal(shape)
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def softmax(s):
    e = np.exp(s - s.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def one_way(q, k, targets, temperature, bias):
    """Loss, d/dq, d/dk, d/dtemperature, d/dbias of `q` `[n, D]` that look for `targets` `[n, m]` among `k` `[m, D]`."""
    s = q @ k.T / temperature
    if bias is None:
        p = softmax(s)
        loss = -(targets * np.log(p)).sum(axis=1).mean()
    else:
        s = s + bias
        p = 1 / (1 + np.exp(-s))
        loss = -np.log(np.where(targets > 0, p, 1 - p)).sum(axis=1).mean()
    ds = (p - targets) / len(q)
    raw = s - (bias or 0)
    return np.array([loss, -(ds * raw).sum() / temperature, ds.sum()]), ds @ k / temperature, ds.T @ q / temperature


def dense(visual, audio, clips, temperature, bias=None, teacher=None):
    """Loss and gradients with respect to visual, audio, temperature and bias, for groups of `clips` of `[B, S, D]`.

    `teacher`: (visual, audio, queue, alpha), as `Teacher`.
    """
    visual, audio = visual.astype(np.float64), audio.astype(np.float64)
    gradients, scalars = [np.zeros_like(visual), np.zeros_like(audio)], np.zeros(3)
    groups = len(visual) // clips
    for g in range(groups):
        part = slice(g * clips, (g + 1) * clips)
        v, a = (x[part].reshape(-1, x.shape[-1]) for x in (visual, audio))
        for own, other, q, k in ((0, 1, v, a), (1, 0, a, v)):
            targets = np.eye(len(q))
            if teacher is not None:
                mine, k = (teacher[i][part].reshape(-1, visual.shape[-1]).astype(np.float64) for i in (own, other))
                k = np.concatenate([k, teacher[2][other].astype(np.float64)])
                targets = np.eye(len(q), len(k))
                if bias is None:
                    targets = (1 - teacher[3]) * targets + teacher[3] * softmax(mine @ k.T / temperature)
            values, dq, dk = one_way(q, k, targets, temperature, bias)
            scalars += values / 2 / groups
            gradients[own][part] += dq.reshape(clips, -1, dq.shape[-1]) / 2 / groups
            if teacher is None:
                gradients[other][part] += dk.reshape(clips, -1, dk.shape[-1]) / 2 / groups
    return scalars[0], (*gradients, scalars[1], scalars[2])
