"""What the tests of kernels that are compiled for GPUs that need not be there share: the run of a script that compiles,
in a process that never had TRITON_INTERPRET, and what counts as staying in registers.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import triton

ROOT = Path(__file__).parents[2]

MOST_REGISTERS = 255
"""Registers that a thread can have; a kernel that needs more keeps the rest on a stack."""

AT_WILL = 32
"""Bytes that the assembler may put on a stack with registers left, to make room for one more program."""

IS_OLDER = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7)
IN_LOOPS, ON_STACK = (24, 96) if IS_OLDER else (0, 64)
"""Loads and stores of the stack within loops, of thousands of instructions, and bytes of it in all that are no loss:
versions of Triton before 3.7 were seen to add 21 and 88, later ones 0 and 40, of which a loop touches none."""


def compiled(script: str, target: int) -> list[dict[str, Any]]:
    """Run a script of this folder for a compute capability (times ten); give its lines, one a kernel.

    With ``BGS_COMPILE_ALL=1`` it compiles all that it can.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [environment.get("PYTHONPATH")])])
    more = ["--all"] if os.environ.get("BGS_COMPILE_ALL") == "1" else []
    command = [sys.executable, str(Path(__file__).with_name(script)), str(target), *more]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def spilt(kernel: dict[str, Any]) -> bool:
    """Say whether a kernel lacks registers: its stack is more than the assembler puts there at will."""
    if not kernel["stack"] + kernel["local"]:
        return False
    if IS_OLDER and kernel["spilled_in_loops"] <= IN_LOOPS and kernel["stack"] <= ON_STACK:
        return False
    return bool(kernel["registers"] >= MOST_REGISTERS or kernel["stack"] > AT_WILL)
