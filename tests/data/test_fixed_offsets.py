"""Published tables of fixed offsets are read; what is no such table is named."""

import csv

import pytest

from synchformer_jax.data import fixed_offsets
from synchformer_jax.errors import UserError


@pytest.mark.parametrize(
    ("name", "rows", "clip", "values"),
    [
        ("audioset_test.csv", 15734, "eval/--4gqARaEJE_0_10000", (-1.4, 4.92)),
        ("vggsound_test.csv", 14022, "---g-f_I2yQ_1000_11000", (0.4, 3.44)),
        ("lrs3_test.csv", 5966, "pretrain/-MTRxRO5SRA/00005", (-1.8, 2.88)),
    ],
)
def test_published_tables(shared_annotations, name, rows, clip, values):
    table = fixed_offsets.read_table(shared_annotations / "fixed_offsets" / name)
    assert len(table) == rows and table[clip] == values
    assert all(-2 <= offset <= 2 and 0 <= start <= 5 for offset, start in table.values())


def test_the_sparse_table_has_several_crops_a_clip_and_some_out_of_sync(shared_annotations):
    path = shared_annotations / "vggsound_sparse_clean_fixed_offsets.csv"
    rows = fixed_offsets.read_rows(path)
    with open(path) as file:
        assert len(rows) == sum(row["is_sync"] == "1" for row in csv.DictReader(file))
    assert rows[0] == ("-7tYmeOmsRg_58000_68000", -1.0, 4.64)


def test_suffix_byte_order_mark_and_order_of_columns_do_not_matter(tmp_path):
    (tmp_path / "t.csv").write_text("\ufeffv_start_sec,offset_sec,path\n1.5,-0.2,a/b.mp4\n1.5,-0.2,a/b\n")
    assert fixed_offsets.read_table(tmp_path / "t.csv") == {"a/b": (-0.2, 1.5)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", "needs the columns"),
        ("", "needs the columns"),
        ("path,offset_sec,vstart_sec\n", "holds no row"),
        ("path,offset_sec,vstart_sec\nx,0.2,1\nx,0.4,1\n", "several offsets for x"),
        ("path,offset_sec,vstart_sec\nx,0.2\n", "line 2"),
        ("path,offset_sec,vstart_sec\nx,much,1\n", "line 2"),
        ("path,offset_sec,vstart_sec\nx,0.2,-1\n", "line 2"),
        ("path,offset_sec,vstart_sec\nx,inf,1\n", "line 2"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, content, message):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        fixed_offsets.read_table(tmp_path / "t.csv")
    with pytest.raises(UserError, match=r"none\.csv cannot be read"):
        fixed_offsets.read_table(tmp_path / "none.csv")
