"""What ``python -m bgs_kernels`` prints."""

import platform
import subprocess
import sys

import torch

import bgs_kernels
from bgs_kernels import dispatch


def test_report_names_versions_machine_and_backends(monkeypatch):
    monkeypatch.setenv("BGS_BACKEND", "reference")
    done = subprocess.run([sys.executable, "-m", "bgs_kernels"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert f"  bgs: {bgs_kernels.__version__}" in lines
    assert f"  python: {platform.python_version()}" in lines
    assert f"  torch: {torch.__version__}" in lines
    assert "  BGS_BACKEND: reference" in lines
    for op in dispatch.ops():
        assert f"  {op} on reference: ready" in lines
        for backend in dispatch.BACKENDS:
            reason = dispatch.why_not(op, backend)
            assert f"  {op} on {backend}: {'ready' if reason is None else f'no: {reason}'}" in lines
    assert done.stderr == ""


def test_report_says_what_is_missing(monkeypatch):
    from bgs_kernels import __main__ as program

    monkeypatch.setattr(program, "PACKAGES", ("torch", "no-such-package"))
    monkeypatch.setitem(sys.modules, "bgs_kernels._native", None)
    text = program.report()
    assert "  no-such-package: not installed" in text
    assert "bgs_kernels._native\n  not built: " in text
