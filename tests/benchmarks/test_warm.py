"""What is compiled ahead for a GPU is what the benchmarks launch there, and Triton finds it, whichever build of it."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from benchmarks import prepared, run_all, warm

ROOT = Path(__file__).parents[2]

pytest.importorskip("triton")

SCRIPT = """
import itertools, json, os, sys
from pathlib import Path
from unittest import mock

import torch, triton
from triton.runtime import cache

from benchmarks import launches, prepared, warm
from bgs_kernels import rope_3d

folder, first, second = map(Path, sys.argv[1:])
gpu = warm.GPUS["h200"]


def turning(dtype):
    def call():
        x = warm.empty(2, 3, 40, 64, dtype=dtype)
        warm.differentiated(rope_3d(x, warm.constant(40, 64), warm.constant(40, 64), backend="triton"), x)

    return call


def hits(call):
    with warm.pretended(gpu), launches.recorded() as launched:
        call()
    found = []
    with mock.patch.object(triton.knobs.compilation, "listener", lambda **about: found.append(about["cache_hit"])):
        for launch in launched:
            launch.kernel.device_caches.clear()
            launches.compiled(launch, gpu.capability)
    return found


os.environ["TRITON_CACHE_DIR"] = str(first)
kernels, keys, failed = warm.compiled([("turning", turning(torch.float16))], gpu)
about = {"gpu": "h200", "triton": triton.__version__, "kernels": prepared.keep_kernels(kernels, keys, folder)}
(folder / prepared.INDEX).write_text(json.dumps(about))

os.environ["TRITON_CACHE_DIR"] = str(second)
with mock.patch.object(cache, "triton_key", lambda: "another build"):
    installed = prepared.install_kernels(folder, launchers=False)
    found = {"brought": hits(turning(torch.float16)), "not brought": hits(turning(torch.bfloat16))}

launched = {}
for name, calls_of in warm.SUITES.items():
    for label, call in itertools.islice(calls_of(), 2 if name == "backbones" else 24):
        with warm.pretended(gpu), launches.recorded() as noted:
            call()
        launched.setdefault(name, set()).update(each.kernel.__name__ for each in noted)
launched = {name: sorted(names) for name, names in launched.items()}
said = {"failed": failed, "kernels": len(kernels), "installed": installed, "found": found, "launched": launched}
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What a process says that never had TRITON_INTERPRET."""
    folder = tmp_path_factory.mktemp("warm")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", SCRIPT, *(str(folder / name) for name in ("prepared", "first", "second"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_another_build_of_triton_finds_what_was_compiled(found):
    assert not found["failed"] and found["kernels"] == 2 and found["installed"] == [2, 0]
    assert found["found"] == {"brought": [True, True], "not brought": [False, False]}


def test_all_benchmarks_are_compiled_for(found):
    launched = found["launched"]
    assert set(launched) == set(warm.SUITES)
    assert {"hybrid_fwd_kernel", "pairs_bwd_kernel", "pairs_bwd_panels_kernel"} <= set(launched["hybrid_loss"])
    assert {"attention_bwd_keys_kernel", "rope_kernel", "small_bwd_kernel"} <= set(launched["attention"])
    assert {"lora_bwd_kernel", "lora_bwd_a_kernel", "lora_add_kernel"} <= set(launched["lora"])
    assert {"lora_bwd_a_kernel", "rope_kernel"} <= set(launched["backbones"])


def test_kernels_of_another_version_are_refused(tmp_path):
    (tmp_path / prepared.INDEX).write_text('{"triton": "2.0.0", "kernels": []}')
    with pytest.raises(ValueError, match=r"of Triton 2\.0\.0, and this is \d"):
        prepared.install_kernels(tmp_path)


def test_folders_that_nobody_prepared_are_refused(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match=r"prepared\.json"):
        prepared.read(tmp_path)
    assert run_all.main([str(tmp_path / "out"), "--warm", str(tmp_path)]) == 2
    assert "prepared.json" in capsys.readouterr().err


SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")


@pytest.mark.parametrize(
    ("about", "content", "said"),
    [
        ({}, None, "not used: it is not there"),
        ({"module": "_native.cpython-27.so", "csrc": "same"}, b"", "not used: it is _native.cpython-27.so"),
        ({"module": f"_native{SUFFIX}", "csrc": "other"}, b"", "not used: it was built of other sources"),
        ({"module": f"_native{SUFFIX}", "csrc": "same"}, b"no library", "not used: ImportError"),
        ({"module": f"_native{SUFFIX}", "csrc": "same"}, "built", "brought along is used"),
    ],
    ids=["none", "another Python", "other sources", "not a library", "used"],
)
def test_a_module_is_taken_over_if_it_is_of_the_same_sources(tmp_path, monkeypatch, capsys, about, content, said):
    native = pytest.importorskip("bgs_kernels._native")
    folder, root, out = tmp_path / "warm", tmp_path / "root", tmp_path / "out"
    for each in (folder, root, out):
        each.mkdir()
    if content is not None:
        content = Path(native.__file__).read_bytes() if content == "built" else content
        (folder / about["module"]).write_bytes(content)
    if about.get("csrc") == "same":
        about = about | {"csrc": prepared.digest()}
    (folder / prepared.INDEX).write_text(json.dumps({"gpu": "h200", "triton": "3", "kernels": []} | about))
    monkeypatch.setattr(run_all, "ROOT", root)
    run_all.Run(out, run_all.CPU, [], 0.0, 100.0, folder)
    assert said in capsys.readouterr().out
    assert (root / f"bgs_kernels/_native{SUFFIX}").exists() == (said == "brought along is used")


def test_the_digest_is_of_what_is_built():
    assert prepared.digest() == prepared.digest() and len(prepared.digest()) == 64
    assert (ROOT / "csrc").is_dir()
