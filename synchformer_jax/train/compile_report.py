"""What `train.compile` tells of a step, as numbers, as JSON and as tables."""

import dataclasses
from typing import Any

from rich.console import Console
from rich.table import Table

from synchformer_jax.train import hlo, roofline


@dataclasses.dataclass(frozen=True)
class Report:
    """What the compiler tells of a step; all numbers are of one chip and one step where no other unit is named.

    Attributes:
        memory: bytes of arguments, results, temporary buffers and code, and "peak": the most at once.
        model_flops: counted from the config (`models.flops`), forward and backward, nothing twice.
        program_flops: of the products in the traced program, with what rematerialisation computes again.
        compiler_flops: XLA's own count, which takes the body of a loop once.
        traffic_bytes: to and from main memory, without padding (`hlo.memory_traffic`).
        collectives: by kind and place.
        link_bytes: that a chip sends in them.
        bounds: seconds that operations, memory and links would each take alone at their peaks.
        compiler_seconds: the TPU compiler's estimate of time on the chip; None where it gives none.
        costs: the places of the program with the most estimated cycles, and their shares.
        compile_seconds: wall time of the compilation.
    """

    topology: str
    device: str
    chips: int
    clips: int
    fits: bool
    memory: dict[str, int]
    memory_limit: float
    model_flops: float
    program_flops: float
    compiler_flops: float
    traffic_bytes: float
    collectives: list[hlo.Collective]
    link_bytes: float
    bounds: dict[str, float]
    compiler_seconds: float | None
    costs: list[tuple[str, float]]
    unknown_loops: tuple[str, ...]
    compile_seconds: float

    @property
    def roofline_seconds(self) -> float:
        """The longest of the bounds: no step can be faster."""
        return max(self.bounds.values())

    @property
    def seconds(self) -> float:
        """The estimated time of a step: the compiler's estimate where it gives one, and no less than the roofline."""
        return max(self.roofline_seconds, self.compiler_seconds or 0.0)

    def mfu(self, seconds: float) -> float:
        """Model FLOP/s utilisation of a step that takes so long."""
        return self.model_flops / seconds / roofline.peak_of(self.device).flops

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        derived = {
            "roofline_seconds": self.roofline_seconds,
            "seconds": self.seconds,
            "clips_per_sec": self.clips / self.seconds,
            "roofline_mfu": self.mfu(self.roofline_seconds),
            "mfu": self.mfu(self.seconds),
        }
        return dataclasses.asdict(self) | derived


def show(found: Report, console: Console) -> None:
    """Tables for people."""
    gib = roofline.GIB
    head = f"{found.topology}: {found.chips} x {found.device}, {found.clips} clips a step"
    console.print(f"[bold]{head}[/] ({found.clips / found.chips:g} a chip), compiled in {found.compile_seconds:.0f} s")
    table = Table("memory of a chip", "GiB", title_justify="left")
    for name, value in found.memory.items():
        table.add_row(name, f"{value / gib:.2f}", end_section=name == "code")
    table.add_row("limit", f"{found.memory_limit / gib:.2f}")
    console.print(table)
    console.print("[green]It fits.[/]" if found.fits else "[red]It does not fit.[/]")

    table = Table("a step on a chip", "amount", "at peak, ms")
    table.add_row("operations of the model", f"{found.model_flops / 1e12:.2f} TFLOP", "")
    table.add_row("  with recomputation", f"{found.program_flops / 1e12:.2f} TFLOP", _ms(found.bounds["operations"]))
    table.add_row("main memory traffic", f"{found.traffic_bytes / 1e9:.1f} GB", _ms(found.bounds["memory"]))
    table.add_row("sent to other chips", f"{found.link_bytes / 1e9:.3f} GB", _ms(found.bounds["links"]))
    console.print(table)

    table = Table("collective", "times", "MB", "devices", "where")
    for one in found.collectives:
        table.add_row(one.kind, str(one.count), f"{one.bytes / 1e6:.2f}", str(one.devices), one.source[-70:])
    if not found.collectives:
        table.add_row("none", "", "", "", "")
    console.print(table)

    table = Table("estimate", "ms a step", "clips/s", "MFU")
    rows = [("roofline", found.roofline_seconds)]
    if found.compiler_seconds:
        rows.append(("compiler's cycles", found.compiler_seconds))
    for name, seconds in rows:
        table.add_row(name, _ms(seconds), f"{found.clips / seconds:.1f}", f"{found.mfu(seconds):.1%}")
    console.print(table)
    if found.costs:
        table = Table("of the compiler's cycles", "place in the program")
        for place, share in found.costs:
            table.add_row(f"{share:.1%}", place[-100:])
        console.print(table)
    if found.unknown_loops:
        console.print(f"Loops of unknown length, counted once: {', '.join(found.unknown_loops)}")


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f}"
