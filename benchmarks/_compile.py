"""What a kernel becomes on a GPU that is not here: Triton's own compiler, and nothing launched."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from os import times
from pathlib import Path
from typing import Any

INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]+)\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)(.*)$")
LABEL = re.compile(r"^(\.L_x_\d+):")
TARGET = re.compile(r"`\((\.L_x_\d+)\)")
THREADS = 32
"""Of a warp."""


@dataclass(frozen=True)
class Compiled:
    """One kernel for one architecture.

    Attributes:
        kernel: its module and name.
        registers: of a thread.
        spilled: bytes of local memory a thread: what the registers did not hold.
        shared: bytes of shared memory a program.
        instructions: SASS instructions by opcode, padding left out.
        loop: of which in the longest loop; 0 where there is none, and a thread issues each at most
            once.
        threads: of a program.
        seconds: of processor time that compiling took, that of ptxas included.
    """

    kernel: str
    registers: int
    spilled: int
    shared: int
    instructions: dict[str, int]
    loop: int
    threads: int
    seconds: float

    @property
    def total(self) -> int:
        """Instructions of all kinds."""
        return sum(self.instructions.values())


class _Driver:
    """What Triton asks of a driver before a launch. A device's number is its architecture."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.arch, THREADS)

    def get_current_device(self) -> int:
        return self.arch

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_for(arch: int) -> None:
    """From now on Triton compiles for sm_``arch`` in this process, as if such a GPU were here."""
    from triton.runtime.driver import driver

    driver.set_active(_Driver(arch))


class Recorder:
    """Stands where ``wrap_triton`` does: ``recorder(kernel)[grid](...)`` compiles the kernel.

    Args:
        folder: where what is known of a kernel is kept, by Triton's own key for it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.launches: list[tuple[tuple[int, ...], Compiled]] = []

    def __call__(self, kernel: Any) -> _Launcher:
        return _Launcher(kernel, self)


@dataclass
class _Launcher:
    kernel: Any
    recorder: Recorder

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*arguments: Any, **options: Any) -> None:
            before = sum(times()[:4])
            found = self.kernel.run(*arguments, grid=grid, warmup=True, **options)
            seconds = sum(times()[:4]) - before
            place = self.kernel.fn.__module__.rpartition(".")[2]
            compiled = _known(found, place, seconds, self.recorder.folder)
            self.recorder.launches.append((grid, compiled))

        return launch


def _known(kernel: Any, place: str, seconds: float, folder: Path) -> Compiled:
    path = folder / f"{kernel.hash}.json"
    if path.exists():
        return Compiled(**json.loads(path.read_text()))
    found = _examined(kernel, place, round(seconds, 2))
    path.write_text(json.dumps(asdict(found)))
    return found


def _examined(kernel: Any, place: str, seconds: float) -> Compiled:
    metadata = kernel.metadata
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _program("cuobjdump", "-res-usage", file.name)
        code = _program("nvdisasm", "-c", file.name)
    registers, stack, local = (
        int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK", "LOCAL")
    )
    instructions, loop = read(code)
    return Compiled(
        f"{place}.{metadata.name}", registers, stack + local, metadata.shared, instructions, loop,
        metadata.num_warps * THREADS, seconds,
    )  # fmt: skip


def _program(name: str, *arguments: str) -> str:
    """What one of the programs that Triton brings prints."""
    from triton.backends.nvidia import compiler

    path = Path(compiler.__file__).parent / "bin" / name
    command = [str(path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603


def read(code: str) -> tuple[dict[str, int], int]:
    """Opcodes of disassembled SASS by number, and the length of the longest loop.

    The branch to itself with which every kernel ends is none, and is not counted.
    """
    counts: Counter[str] = Counter()
    seen: dict[str, int] = {}
    loop = 0
    for line in code.splitlines():
        label, found = LABEL.match(line), INSTRUCTION.match(line)
        if label:
            seen[label[1]] = sum(counts.values())
        if not found or found[2] == "NOP":
            continue
        target = TARGET.search(found[3])
        if target and target[1] in seen:
            length = sum(counts.values()) - seen[target[1]]
            if length == 0:
                continue
            loop = max(loop, length + 1)
        counts[found[2]] += 1
    return dict(counts), loop
