"""What the Triton kernel of the loss compiles to for GPUs that are not there: registers, spills and shared memory.

    python benchmarks/kernels.py                        # A100, H100 and B200
    python benchmarks/kernels.py --capabilities 90

Triton compiles for any GPU with what its own package carries, so that this runs on every machine. The kernel is
compiled as it would be launched: the arguments are those of a call, and what Triton derives from them (strides of 1,
multiples of 16) is derived here. How fast it is, only a GPU says.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from atrous.ops import upsampled_loss_triton

CAPABILITIES = (80, 90, 100)
POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
OPTIONS = ("num_warps", "num_stages")
REGISTERS_OF_A_MULTIPROCESSOR = 65_536
LINE = "{:46} {:>4} {:>9} {:>7} {:>7} {:>5} {:>8} {:>5}"


@dataclass(frozen=True)
class Compiled:
    """A kernel for one GPU.

    Attributes:
        registers: of a thread.
        spilled: bytes of a thread that did not fit into its registers, and go through memory.
        shared: bytes of shared memory of a program.
        warps: of a program; as many more fit beside them as registers are left.
        wide_loads: share of its loads from global memory that bring 16 bytes at a time.
    """

    registers: int
    spilled: int
    shared: int
    warps: int
    wide_loads: float

    @property
    def resident_warps(self) -> int:
        """Warps that a multiprocessor holds at a time, by registers alone."""
        given = -(-self.registers // 8) * 8  # in eights
        return REGISTERS_OF_A_MULTIPROCESSOR // (given * 32 * self.warps) * self.warps


def main() -> None:
    args = arguments()
    print(LINE.format("kernel", "sm", "registers", "spilled", "shared", "warps", "resident", "wide"))
    for capability in args.capabilities:
        for name, call in CALLS.items():
            kernel = compiled(call, capability)[0]
            sizes = (kernel.registers, kernel.spilled, kernel.shared, kernel.warps, kernel.resident_warps)
            print(LINE.format(name, capability, *sizes, f"{kernel.wide_loads:.0%}"))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capabilities", type=int, nargs="+", default=list(CAPABILITIES), metavar="N")
    return parser.parse_args()


def compiled(call: Callable[[], object], capability: int) -> list[Compiled]:
    """The kernels that a call launches, compiled for a compute capability, e.g. 90, and not run."""
    with recorded() as launches:
        call()
    return [_compile(kernel, args, options, capability) for kernel, args, options in launches]


Launch = tuple[Any, tuple[Any, ...], dict[str, Any]]


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Inside, launches of our kernels are noted, not made."""
    kernel = upsampled_loss_triton._cells
    launches: list[Launch] = []
    upsampled_loss_triton._cells = _Recorder(kernel, launches)
    try:
        yield launches
    finally:
        upsampled_loss_triton._cells = kernel


class _Recorder:
    def __init__(self, kernel: Any, launches: list[Launch]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **options: Any) -> None:
            self.launches.append((self.kernel, args, options))

        return launch


def _compile(kernel: Any, args: tuple[Any, ...], options: dict[str, Any], capability: int) -> Compiled:
    given = {name: value for name, value in options.items() if name in OPTIONS}
    constants = {name: value for name, value in options.items() if name not in OPTIONS}
    signature: dict[str, str] = dict.fromkeys(kernel.arg_names, "constexpr")
    attributes = {}
    for place, (name, value) in enumerate(zip(kernel.arg_names, args, strict=False)):
        if isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
        elif value == 1:
            constants[name] = 1
            continue
        else:
            signature[name] = "i32"
        if isinstance(value, torch.Tensor) or value % 16 == 0:
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=given)
    registers, spilled = _resources(binary.asm["cubin"])
    ptx = binary.asm["ptx"]
    copies = re.findall(r"cp\.async\.c[ag]\.shared\.global[^;]*;", ptx)
    loads = len(copies) + len(re.findall(r"\bld\.global", ptx))
    wide = sum(bool(re.search(r", 0x10\b|, 16\b", copy)) for copy in copies)
    return Compiled(registers, spilled, binary.metadata.shared, binary.metadata.num_warps, wide / max(1, loads))


def _resources(cubin: bytes) -> tuple[int, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        text = subprocess.run([tool, "-res-usage", file], capture_output=True, text=True, check=True).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert usage, text
    return int(usage[1]), int(usage[2])


def _loss(classes: int, stride: int) -> Callable[[], object]:
    def call() -> object:
        logits = torch.zeros(1, classes, 5, 5).contiguous(memory_format=torch.channels_last)
        labels = torch.zeros(1, 4 * stride + 1, 4 * stride + 1, dtype=torch.uint8)
        return upsampled_loss_triton.cross_entropy(logits, labels, None, stride, 255, True)

    return call


CALLS: dict[str, Callable[[], object]] = {
    f"loss and gradient, {classes} classes, stride {stride}": _loss(classes, stride)
    for classes, stride in ((2, 16), (11, 16), (21, 16), (21, 8), (150, 16), (1000, 16))
}

if __name__ == "__main__":
    main()
