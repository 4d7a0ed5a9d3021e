"""Effects of the sound against SciPy's recursive filters, a loop over samples, and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import lfilter

from synchformer_jax.ops import augment_sound as effects

KEY = jax.random.key(0)
RATE = 16_000


@pytest.fixture(scope="module")
def audio():
    return jnp.asarray(0.2 * np.random.default_rng(0).standard_normal((20, 10, 1600), np.float32))


@pytest.mark.parametrize("name", effects.EFFECTS)
def test_sounds_change_in_the_asked_share(audio, name):
    call = jax.jit(getattr(effects, name), static_argnums=2)
    changed = lambda share: np.any(np.asarray(call(audio, KEY, share) != audio), axis=-1)  # noqa: E731
    assert not changed(0.0).any()
    assert 20 <= changed(0.2).sum() <= 60
    assert changed(1.0).all()


@pytest.mark.parametrize("name", effects.EFFECTS)
def test_sounds_stay_sounds(name):
    """Silence stays silence but for noise; what is loud stays within [-1, 1] but for noise; clips serve as segments."""
    call = getattr(effects, name)
    quiet = np.asarray(call(jnp.zeros((2, 4000)), KEY, 1.0))
    loud = np.asarray(call(jnp.sign(jnp.sin(jnp.arange(8000.0))).reshape(2, 4000), KEY, 1.0))
    assert quiet.shape == loud.shape == (2, 4000) and np.isfinite(loud).all()
    if name == "noise":
        assert 0.005 < quiet.std() < 0.02
    else:
        assert not quiet.any() and abs(loud).max() <= 1


def test_volume_doubles_and_clips(audio):
    louder = effects.volume(audio, KEY, 1.0)
    np.testing.assert_allclose(louder, np.clip(2 * np.asarray(audio), -1, 1), rtol=1e-6)


def test_low_pass_equals_the_recursive_filter(audio):
    omega = 2 * np.pi * 100 / RATE
    alpha = np.sin(omega) / (2 * 0.707)
    feed = np.array([(1 - np.cos(omega)) / 2, 1 - np.cos(omega), (1 - np.cos(omega)) / 2])
    back = np.array([1 + alpha, -2 * np.cos(omega), 1 - alpha])
    expected = lfilter(feed, back, np.asarray(audio, np.float64), axis=-1)
    np.testing.assert_allclose(effects.low_pass(audio, KEY, 1.0), expected, atol=1e-5)


def test_noise_has_its_amplitude(audio):
    assert np.std(effects.noise(audio, KEY, 1.0) - audio) == pytest.approx(0.01, rel=0.02)


def freeverb(sound: np.ndarray) -> np.ndarray:
    """Both ears' combs and all-passes as SciPy's recursive filters, in time."""
    # What the feedback leaves is 0.7 at 0% and 0.02 at 100%, in even steps of its logarithm; 50% is the default.
    feedback, damping, ears = 1 - (0.7 * 0.02) ** 0.5, 0.35, []
    for ear in (0, 1):
        total = np.zeros_like(sound)
        for number, size in enumerate((1116, 1188, 1277, 1356, 1422, 1491, 1557, 1617)):
            delay = int(RATE / 44_100 * (size + 12 * ear * (-1) ** number) + 0.5)
            feed, back = np.zeros(delay + 2), np.zeros(delay + 2)
            feed[delay : delay + 2] = 1, -damping
            back[:2] = 1, -damping
            back[delay] -= feedback * (1 - damping)
            total += lfilter(feed, back, sound)
        for number, size in enumerate((225, 341, 441, 556)):
            delay = int(RATE / 44_100 * (size + 12 * ear * (-1) ** number) + 0.5)
            feed, back = np.zeros(delay + 1), np.zeros(delay + 1)
            feed[0], feed[delay], back[0], back[delay] = -1, 1.5, 1, -0.5
            total = lfilter(feed, back, total)
        ears.append(0.015 * total)
    return np.mean(ears, axis=0)


def test_reverb_equals_its_filters():
    sound = 0.3 * np.random.default_rng(1).standard_normal(10_240)
    got = np.asarray(effects.reverb(jnp.asarray(sound, jnp.float32)[None], KEY, 1.0))[0]
    np.testing.assert_allclose(got, freeverb(sound), atol=2e-5)
    response = effects.reverb_response()
    assert abs(response[-8000:]).max() < 1e-9 * abs(response).max()  # it has rung out, nothing wraps round
    assert not abs(response[:400]).max() > 1e-9  # no direct sound: the first echo takes 25 ms


def stretched(sound: np.ndarray, ratio: float) -> np.ndarray:
    """SoX's tempo, piece by piece."""
    piece, overlap, search = 1312, 192, 235
    padded = np.concatenate([np.zeros(search // 2), sound, np.zeros(2 * piece)])
    out, tail = [], None
    for number in range(-(-round(len(sound) * ratio) // (piece - overlap))):
        near = padded[int(number * (piece - overlap) / ratio + 0.5) :]
        shift = search // 2
        if tail is not None:
            shift = int(np.argmin([np.sum((near[at : at + overlap] - tail) ** 2) for at in range(search)]))
        taken = near[shift : shift + piece].copy()
        if tail is not None:
            fade = np.arange(overlap) / overlap
            taken[:overlap] = tail * (1 - fade) + taken[:overlap] * fade
        out.append(taken[: piece - overlap])
        tail = taken[piece - overlap :]
    return np.concatenate(out)[: round(len(sound) * ratio)]


def test_stretch_equals_a_loop():
    time = np.arange(10_240) / RATE
    sound = 0.4 * np.sin(2 * np.pi * 300 * time) * np.exp(-3 * time) + 0.2 * np.sin(2 * np.pi * 517 * time)
    ratio = 2 ** (1000 / 1200)
    got = np.asarray(effects._stretch(jnp.asarray(sound, jnp.float32)[None], ratio))[0]
    np.testing.assert_allclose(got, stretched(sound, ratio), atol=1e-5)


@pytest.mark.parametrize("cents, frequency", [(1000, 440.0), (1000, 2000.0), (-700, 440.0)])
def test_pitch_shift_of_a_tone(cents, frequency):
    """A tone comes out 2^(cents / 1200) times as high, about as loud, and nothing else beside it."""
    tone = jnp.sin(2 * jnp.pi * frequency * jnp.arange(10_240) / RATE)[None] * 0.5
    got = np.asarray(effects.pitch_shift(tone, KEY, 1.0, cents))[0]
    inner = got[1000:-1000] * np.hanning(8240)
    spectrum = abs(np.fft.rfft(inner, 1 << 17))
    peak = np.argmax(spectrum) * RATE / (1 << 17)
    assert peak == pytest.approx(frequency * 2 ** (cents / 1200), rel=0.004)
    assert np.std(got[1000:-1000]) == pytest.approx(0.5 / 2**0.5, rel=0.1)


def test_pitch_shift_keeps_time():
    """A burst stays within the search's reach of its place: synchrony survives."""
    sound = np.zeros((3, 10_240), np.float32)
    for row, at in enumerate((2000, 5000, 8000)):
        sound[row, at : at + 400] = np.sin(np.arange(400) * 0.3) * np.hanning(400)
    got = np.asarray(effects.pitch_shift(jnp.asarray(sound), KEY, 1.0))
    for row, at in enumerate((2000, 5000, 8000)):
        centre = np.sum(np.arange(10_240) * got[row] ** 2) / np.sum(got[row] ** 2)
        assert abs(centre - at - 200) < 0.03 * RATE
