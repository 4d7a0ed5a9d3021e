"""The figures of the report, each a self-contained SVG as a data address."""

import base64
import io
import logging
import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

INK, MUTED, FAINT, RULE = "#1d2129", "#6a7180", "#b9bfca", "#e6e8ec"
BLUE, ORANGE, GREEN = "#2b5fd9", "#d9722b", "#1f8a5b"
BLUES = LinearSegmentedColormap.from_list("report_blues", ["#ffffff", "#dbe6fb", "#8fb0f0", "#2b5fd9", "#152f73"])

STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Inter", "Helvetica Neue", "Segoe UI", "Arial", "DejaVu Sans"],
    "font.size": 9.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "synchformer",
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def _svg(figure: Figure) -> str:
    """The figure as a `data:` address. Text stays text, set in the reader's own sans-serif."""
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", pad_inches=0.03, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def smooth(values: Sequence[float], span: int) -> np.ndarray:
    """A running mean over `span` values on each side, over fewer at the ends."""
    values = np.asarray(values, np.float64)
    total = np.concatenate([[0.0], np.cumsum(values)])
    low = np.clip(np.arange(len(values)) - span, 0, None)
    high = np.clip(np.arange(len(values)) + span + 1, None, len(values))
    return (total[high] - total[low]) / (high - low)


def signed(seconds: float) -> str:
    """An offset as an axis label."""
    return "0" if abs(seconds) < 1e-6 else f"{seconds:+.1f}".replace("-", "−")


def _reference(axes: Axes, level: float, text: str) -> None:
    axes.axhline(level, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        text, (1, level), xycoords=("axes fraction", "data"), xytext=(0, 3), textcoords="offset points",
        ha="right", va="bottom", color=MUTED, fontsize=8.5,
    )  # fmt: skip


def curves(panels: Sequence[dict]) -> str:
    """Line charts side by side.

    Args:
        panels: each with `title`, `lines` (dicts of `label`, `steps`, `values`, `kind` "train" or "valid"), and
            optionally `reference` (value, text) and `percent` (the values are shares).
    """
    with matplotlib.rc_context(STYLE):
        width = 9.6 / max(2, len(panels))  # all rows of panels take the page's width, so that their text is alike
        figure = Figure(figsize=(width * len(panels), 2.0 + 0.2 * width), layout="constrained")
        for axes, panel in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
            axes.set_title(panel["title"], pad=10)
            for line in panel["lines"]:
                steps, values = np.asarray(line["steps"]), np.asarray(line["values"], np.float64)
                if line["kind"] == "train":
                    axes.plot(steps, values, color=BLUE, alpha=0.22, linewidth=1)
                    axes.plot(steps, smooth(values, max(1, len(values) // 25)), color=BLUE, label=line["label"])
                else:
                    axes.plot(steps, values, "o-", color=ORANGE, markersize=4, linewidth=1.4, label=line["label"])
            if panel.get("reference"):
                _reference(axes, *panel["reference"])
            if panel.get("percent"):
                axes.set_ylim(0, 1.02)
                axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
            else:
                highest = max(axes.get_ylim()[1], 1.09 * panel["reference"][0] if panel.get("reference") else 0)
                axes.set_ylim(min(0, axes.get_ylim()[0]), highest)
            axes.set_xlim(0, 1.02 * max(max(line["steps"]) for line in panel["lines"]))
            axes.set_xlabel("step")
            axes.legend(loc="best", handlelength=1.2)
        return _svg(figure)


def confusion(counts: np.ndarray, grid: Sequence[float]) -> str:
    """The row-normalised confusion matrix, with the band of one class either side of the truth outlined.

    Args:
        counts: `[C, C]`, row the true class.
        grid: the classes' offsets in seconds.
    """
    counts = np.asarray(counts, np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    classes = len(grid)
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(6.2, 5.4), layout="constrained")
        axes = figure.subplots()
        mesh = axes.pcolormesh(shares, cmap=BLUES, vmin=0, vmax=1, edgecolors="#eef0f4", linewidth=0.5)
        for edge in (-1, 2):
            x = np.repeat(np.arange(classes), 2) + edge
            y = np.repeat(np.arange(classes + 1), 2)[1:-1]
            inside = (x >= 0) & (x <= classes)
            axes.plot(x[inside], y[inside], color=ORANGE, linewidth=1, alpha=0.9)
        ticks = range(0, classes, 2) if classes > 12 else range(classes)
        labels = [signed(grid[i]) for i in ticks]
        axes.set_xticks([i + 0.5 for i in ticks], labels)
        axes.set_yticks([i + 0.5 for i in ticks], labels)
        axes.invert_yaxis()
        axes.set_aspect("equal")
        axes.set_xlabel("predicted offset (s)")
        axes.set_ylabel("true offset (s)")
        for spine in axes.spines.values():
            spine.set_visible(False)
        bar = figure.colorbar(mesh, ax=axes, shrink=0.55, aspect=18, pad=0.02, format=lambda share, _: f"{share:.0%}")
        bar.outline.set_visible(False)
        bar.set_label("share of the row")
        return _svg(figure)


def similarities(matrices: Sequence[np.ndarray], titles: Sequence[str]) -> str:
    """Square matrices side by side, each on its own colour range: row a segment of picture, column one of sound."""
    columns = min(4, len(matrices))
    rows = math.ceil(len(matrices) / columns)
    with matplotlib.rc_context({**STYLE, "axes.grid": False, "axes.titlesize": 9, "axes.titleweight": "normal"}):
        figure = Figure(figsize=(2.75 * columns, 2.95 * rows), layout="constrained")
        flat = np.atleast_1d(figure.subplots(rows, columns)).ravel()
        for axes in flat[len(matrices) :]:
            axes.set_visible(False)
        for i, (axes, matrix, title) in enumerate(zip(flat, matrices, titles, strict=False)):
            axes.pcolormesh(matrix, cmap=BLUES)
            axes.set_title(title, pad=6)
            axes.set_aspect("equal")
            axes.invert_yaxis()
            ticks = [0, len(matrix) // 2, len(matrix) - 1]
            axes.set_xticks([tick + 0.5 for tick in ticks], [tick + 1 for tick in ticks])
            axes.set_yticks([tick + 0.5 for tick in ticks], [tick + 1 for tick in ticks])
            for spine in axes.spines.values():
                spine.set_visible(False)
            if i // columns == rows - 1:
                axes.set_xlabel("sound segment")
            if i % columns == 0:
                axes.set_ylabel("picture segment")
        return _svg(figure)


def distribution(probabilities: Sequence[float], grid: Sequence[float], true_offset: float | None) -> str:
    """Bars of the probability of each offset; the true offset, where known, is marked."""
    probabilities, grid = np.asarray(probabilities), np.asarray(grid)
    best = int(probabilities.argmax())
    step = float(grid[1] - grid[0])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 2.7), layout="constrained")
        axes = figure.subplots()
        colours = [BLUE if i == best else "#a9c0f2" for i in range(len(grid))]
        axes.bar(grid, probabilities, width=0.78 * step, color=colours)
        top = max(float(probabilities.max()) * 1.24, 0.1)
        axes.set_ylim(0, top)
        axes.annotate(
            f"{probabilities[best]:.0%}", (grid[best], probabilities[best]), xytext=(0, 3),
            textcoords="offset points", ha="center", color=BLUE, fontweight="bold",
        )  # fmt: skip
        if true_offset is not None:
            axes.plot([true_offset], [0], marker="^", color=ORANGE, markersize=9, clip_on=False, zorder=5)
            axes.annotate(
                f"true offset {true_offset:+.2f} s", (true_offset, top), xytext=(5 if true_offset < 1 else -5, 0),
                textcoords="offset points", ha="left" if true_offset < 1 else "right", va="top", color=ORANGE,
                fontsize=9,
            )  # fmt: skip
            axes.axvline(true_offset, color=ORANGE, linewidth=1.1, linestyle=(0, (4, 3)), zorder=0)
        axes.set_xticks(grid[:: max(1, len(grid) // 10)])
        axes.xaxis.set_major_formatter(lambda value, _: signed(value))
        axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        axes.set_xlabel("offset (s):  sound late  ←  0  →  sound early")
        axes.set_xlim(grid[0] - step, grid[-1] + step)
        return _svg(figure)


def filmstrip(frames: np.ndarray, audio: np.ndarray, seconds: float) -> str:
    """Frames in a row over the wave of the sound, on one time axis: what the model was given.

    Args:
        frames: `[T, H, W, 3]` uint8.
        audio: `[N]` int16.
        seconds: the length of both.
    """
    count, width, wave = 8, 6.4, 0.75  # frames; inches
    picked = frames[np.linspace(0, len(frames) - 1, 2 * count + 1).round().astype(int)[1::2]]
    strip = 0.96 * width / count * picked.shape[1] / picked.shape[2]
    total = strip + wave + 0.06
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(width, total))
        upper = figure.add_axes((0, 1 - strip / total, 1, strip / total))
        lower = figure.add_axes((0, 0, 1, wave / total))
        gap = 0.02 * seconds / count
        for i, frame in enumerate(picked):
            left = i * seconds / count
            extent = (left + gap, left + seconds / count - gap, 0, 1)
            upper.imshow(frame, extent=extent, aspect="auto", interpolation="bilinear")
        upper.set_xlim(0, seconds)
        upper.set_ylim(0, 1)
        upper.axis("off")
        columns = 640
        usable = len(audio) // columns * columns
        blocks = audio[:usable].astype(np.float64).reshape(columns, -1)
        scale = max(1.0, float(np.abs(blocks).max()))
        time = (np.arange(columns) + 0.5) * seconds / columns
        lower.fill_between(time, blocks.min(axis=1) / scale, blocks.max(axis=1) / scale, color=ORANGE, linewidth=0)
        lower.set_xlim(0, seconds)
        lower.set_ylim(-1.05, 1.05)
        lower.set_yticks([])
        lower.spines["left"].set_visible(False)
        lower.set_xlabel("seconds of the crop")
        return _svg(figure)
