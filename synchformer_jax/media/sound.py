"""Decoded pieces of sound with time stamps -> one channel at one rate, every sample at its time."""

import av
import numpy as np
import soxr

# Containers such as Matroska round time stamps to a millisecond and some writers do worse; a lost packet is 20 ms or
# more. Smaller deviations are taken as rounding, larger ones as a gap or an overlap.
_JUMP_SEC = 0.010
# Context around the wanted window, so that the resampler's filter sees what is really there. At every usual rate it
# is a whole number of samples.
_CONTEXT_SEC = 0.2
_FULL_SCALE = {"s16": 2.0**15, "s32": 2.0**31, "s64": 2.0**63, "flt": 1.0, "dbl": 1.0}
_SURROUND = {"BL", "BR", "BC", "SL", "SR", "FLC", "FRC"}


def mix_down(samples: np.ndarray, channels: list[str]) -> np.ndarray:
    """Mixes channels into one: front and centre at full weight, surround at 0.71, no low-frequency effects.

    Weights are scaled to sum to one, so that nothing clips; stereo becomes the mean of both channels.

    Args:
        samples: float32 `[channels, samples]`.
        channels: libav's name of each channel, such as "FL".

    Returns:
        float32 `[samples]`.
    """
    if len(channels) == 1:
        return samples[0]
    weights = np.array([0.0 if c.startswith("LFE") else 0.7071 if c in _SURROUND else 1.0 for c in channels])
    weights = weights if weights.sum() else np.ones(len(channels))
    return (weights / weights.sum()).astype(np.float32) @ samples


def _to_mono(frame: av.AudioFrame) -> np.ndarray:
    kind = frame.format.name.removesuffix("p")
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if kind == "u8":
        samples = (samples.astype(np.float32) - 128) / 128
    elif _FULL_SCALE[kind] != 1:
        samples = samples.astype(np.float32) / np.float32(_FULL_SCALE[kind])
    return mix_down(samples.astype(np.float32), [channel.name for channel in frame.layout.channels])


class Sound:
    """Collects decoded pieces of sound and puts them on a clip's time line."""

    def __init__(self) -> None:
        self._pieces: list[tuple[float, int, np.ndarray]] = []
        self._next_sec: float | None = None  # where a piece without a time stamp goes

    @property
    def end_sec(self) -> float:
        """The file's time at which the last piece ends; minus infinity before the first."""
        return float("-inf") if self._next_sec is None else self._next_sec

    def add(self, frame: av.AudioFrame) -> None:
        """Takes a decoded piece."""
        if not frame.samples or not frame.sample_rate:
            return
        start = frame.time if frame.pts is not None else (self._next_sec or 0.0)
        self._pieces.append((start, frame.sample_rate, _to_mono(frame)))
        self._next_sec = start + frame.samples / frame.sample_rate

    def drop_before(self, sec: float) -> None:
        """Forgets pieces that end before a time of the file and cannot matter any more."""
        while self._pieces and self._pieces[0][0] + len(self._pieces[0][2]) / self._pieces[0][1] < sec - _CONTEXT_SEC:
            self._pieces.pop(0)

    def _runs(self) -> list[tuple[float, int, np.ndarray]]:
        """Joins adjacent pieces. A run starts at the median of what its pieces' time stamps say."""
        runs: list[tuple[float, int, list[np.ndarray], list[float]]] = []
        length = 0
        for start, rate, samples in self._pieces:
            if runs and runs[-1][1] == rate:
                deviation = start - (runs[-1][0] + length / rate)
                if abs(deviation) <= _JUMP_SEC:
                    runs[-1][2].append(samples)
                    runs[-1][3].append(deviation)
                    length += len(samples)
                    continue
            runs.append((start, rate, [samples], [0.0]))
            length = len(samples)
        return [(start + float(np.median(late)), rate, np.concatenate(parts)) for start, rate, parts, late in runs]

    def cut(self, start_sec: float, samples: int, sample_rate: int) -> tuple[np.ndarray, float, float]:
        """The sound from a time of the file on; silence where the file has none.

        Args:
            start_sec: the file's time of the first sample.
            samples: how many samples to return.
            sample_rate: their rate in Hz.

        Returns:
            int16 `[samples]`, and where in it (seconds) the file's sound starts and ends; equal if it has none.
        """
        duration = samples / sample_rate
        mixed = np.zeros(samples, np.float32)
        runs = self._runs()
        for rate in sorted({rate for _, rate, _ in runs}):
            line = np.zeros(round((duration + 2 * _CONTEXT_SEC) * rate), np.float32)
            for run_start, run_rate, run in runs:
                if run_rate != rate:
                    continue
                at = round((run_start - start_sec + _CONTEXT_SEC) * rate)
                low, high = max(at, 0), min(at + len(run), len(line))
                if low < high:
                    line[low:high] = run[low - at : high - at]
            if rate != sample_rate:
                line = soxr.resample(line, rate, sample_rate, quality="HQ")
            skip = round(_CONTEXT_SEC * sample_rate)
            line = line[skip : skip + samples]
            mixed[: len(line)] += line
        first = min((start - start_sec for start, _, _ in runs), default=0.0)
        last = max((start - start_sec + len(run) / rate for start, rate, run in runs), default=0.0)
        first = min(max(first, 0.0), duration)
        last = max(min(last, duration), first)
        return np.clip(np.rint(mixed * 32768), -32768, 32767).astype(np.int16), first, last
