"""What is read from compiled programs, against programs whose collectives and loops are known."""

import pytest

from synchformer_jax.train import hlo, roofline
from tests.simulated import outcome

TEXT = """HloModule jit_f, is_scheduled=true
%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}
%body (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %p = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}) parameter(0)
  %x = bf16[4,8]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %r = bf16[4,8]{1,0:T(8,128)(2,1)} all-reduce(%x), replica_groups=mesh['a'=4,'b'=2] {'a'}, to_apply=%add, \
metadata={op_name="jit(f)/while/body/psum"}
  %y = bf16[4,8]{1,0:T(8,128)(2,1)S(1)} fusion(%r), kind=kLoop, calls=%fused, metadata={op_name="jit(f)/mul"}, \
backend_config={"window_config":{"estimated_cycles":"1000"}}
  ROOT %t = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)S(1)}) tuple(%x, %y)
}
%fused (q: bf16[4,8]) -> bf16[4,8] {
  %q = bf16[4,8]{1,0} parameter(0)
  ROOT %m = bf16[4,8]{1,0} multiply(%q, %q)
}
%condition (c: (s32[], bf16[4,8])) -> pred[] {
  %c = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}) parameter(0)
  %limit = s32[]{:T(128)} constant(12)
  %i = s32[]{:T(128)} get-tuple-element(%c), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}
ENTRY %main (z: bf16[4,8]) -> (s32[], bf16[4,8]) {
  %z = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  %gs = ((bf16[4,8]{1,0}), (bf16[32,8]{1,0})) all-gather-start(%z), replica_groups=[1,8]<=[8], dimensions={0}
  %g = bf16[32,8]{1,0} all-gather-done(%gs)
  ROOT %w = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}) while(%start), condition=%condition, body=%body
}
"""


def test_loops_count_by_their_trips():
    program = hlo.parse(TEXT)
    assert program.times == {"main": 1, "body": 12, "fused": 12} and not program.unknown_loops
    gather, reduce = sorted(hlo.collectives(program, 8), key=lambda one: one.kind)
    assert (gather.kind, gather.count, gather.bytes, gather.devices) == ("all-gather", 1, 32 * 8 * 2, 8)
    assert (reduce.kind, reduce.count, reduce.bytes, reduce.devices) == ("all-reduce", 12, 12 * 4 * 8 * 2, 4)
    assert reduce.source == "jit(f)/while/body/psum"
    assert hlo.cycles(program) == {"jit(f)/mul": 12_000}
    assert roofline.link_bytes([gather, reduce]) == 512 * 7 / 8 + 2 * 768 * 3 / 4
    # The reduction reads and writes 64 bytes each time; the product reads 64 and leaves its result on the chip.
    assert hlo.memory_traffic(program) == 12 * (128 + 64) + 64 + 512 + 64


def test_a_loop_of_unknown_length_is_named():
    program = hlo.parse(TEXT.replace("direction=LT", "direction=NE"))
    assert program.unknown_loops == ("w",) and program.times["body"] == 1


def test_other_text_is_refused():
    with pytest.raises(ValueError, match="no entry computation"):
        hlo.parse("module @jit_f {}")


SCRIPT = """
import json
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from synchformer_jax.train import hlo
mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
def loss(w, x):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0].sum()
w = jax.ShapeDtypeStruct((5, 16, 16), jnp.float32, sharding=NamedSharding(mesh, P()))
x = jax.ShapeDtypeStruct((32, 16), jnp.float32, sharding=NamedSharding(mesh, P("data")))
compiled = jax.jit(jax.grad(loss), out_shardings=NamedSharding(mesh, P())).lower(w, x).compile()
program = hlo.parse(compiled.as_text())
rows = [(one.kind, one.count, one.bytes, one.devices) for one in hlo.collectives(program, 8)]
print(json.dumps({"rows": rows, "unknown": program.unknown_loops}))
"""


def test_the_gradient_reduction_of_a_real_scan():
    found = outcome(SCRIPT, optimise=True)
    assert not found["unknown"]
    # Five layers of 16 x 16 float32: reduced one by one in the loop, or all at once behind it.
    (row,) = found["rows"]
    assert row[0] == "all-reduce" and row[1] in (1, 5) and row[2:] == [5 * 16 * 16 * 4, 8]


def test_peaks_are_found_by_the_kind_of_device():
    assert roofline.peak_of("TPU v5 lite").flops == 197e12
    assert roofline.peak_of("TPU v5").flops == roofline.peak_of("TPU v5p").flops == 459e12
    assert roofline.peak_of("NVIDIA H100 80GB HBM3").flops == 989e12
    assert roofline.peak_of("NVIDIA H100 PCIe").flops == 756e12
    assert roofline.mfu(98.5e12, "TPU v5 lite") == 0.5
    assert roofline.peak_of("cpu") is None and roofline.mfu(1e12, "cpu") is None
