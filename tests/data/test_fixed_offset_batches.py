"""Evaluation by a published table: its crops, its clips, its mistakes."""

from pathlib import Path

import numpy as np
import pytest

from synchformer_jax.errors import UserError
from tests.data import make_records as make
from tests.data.make_records import COUNT, positions


def fixed(folder, tmp_path, rows, **changes):
    path = tmp_path / "table.csv"
    path.write_text("path,offset_sec,vstart_sec\n" + "".join(f"{clip},{off},{at}\n" for clip, off, at in rows))
    return make.config(folder, **{"data.fixed_offsets": str(path), **changes})


def test_fixed_offsets_are_the_published_crops(folder, tmp_path, run):
    """Each row of the parity table: the 14 segments in the middle of its 5 s, from frame and sample to the target."""
    table = np.load(Path(__file__).parent / "temporal_crop.npz")
    columns = table["columns"].tolist()
    rows = [dict(zip(columns, row.tolist(), strict=True)) for row in table["rows"][:COUNT]]
    given = [(f"clip {i}", row["offset_sec"], row["v_start_sec"]) for i, row in enumerate(rows)]
    batches = list(run(fixed(folder, tmp_path, given), train=False))
    record = np.concatenate([batch["record"] for batch in batches])
    assert record[:COUNT].tolist() == list(range(COUNT))
    got = [place for batch in batches for place in positions(batch)][:COUNT]
    for (frame, sample), row in zip(got, rows, strict=True):
        assert (frame, sample) == (row["first_frame"] + 2, row["first_sample"] + 2 * 640)
    target, offset = (np.concatenate([batch[name] for batch in batches])[:COUNT] for name in ("target", "offset_sec"))
    assert target.tolist() == [row["offset_target"] for row in rows]
    np.testing.assert_allclose(offset, [row["offset_sec"] for row in rows], atol=1e-6)


def test_clips_without_a_row_are_left_out(folder, tmp_path, run, caplog, cache):
    """Training does not look at the table; evaluation takes frames even beside cached features."""
    config = fixed(folder, tmp_path, [("clip 7", -0.4, 2.0), ("clip 2", 1.0, 0.4), ("elsewhere", 0, 0)])
    config.data.visual_features = str(cache)
    batches = run(config, train=False)
    assert len(batches) == 1 and "8 of 10 clips have no row" in caplog.text and "clip 0, clip 1, clip 3" in caplog.text
    batch = next(batches)
    assert batch["record"].tolist() == [2, 7, 2, 7] and batch["valid"].tolist() == [True, True, False, False]
    assert batch["target"][:2].tolist() == [15, 8] and batch["frames"].shape == (4, 120, 32, 32, 3)
    assert "visual" in next(run(config))


def test_fixed_offsets_that_do_not_serve(folder, tmp_path, run):
    with pytest.raises(UserError, match="a row for none of the 10 clips, such as 'clip 0'"):
        run(fixed(folder, tmp_path, [("elsewhere", 0, 0)]), train=False)
    config = fixed(folder, tmp_path, [("clip 1", 0.2, 4.9), ("clip 2", 0, 1)])
    batches = run(config, train=False)
    assert next(batches)["valid"].sum() == 1  # the first crop ends behind its clip
    assert "does not lie in" in batches.corrupt[1]
    other = tmp_path / "other.csv"
    other.write_text("path,offset_sec,vstart_sec\nclip 2,0.4,1\n")
    config.data.fixed_offsets = f"{config.data.fixed_offsets},{other}"
    with pytest.raises(UserError, match=r"other.csv and an earlier table .* disagree on clip 2"):
        run(config, train=False)
