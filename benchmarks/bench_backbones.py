"""How long whole backbones take, and how much memory: a training step with adapters, with and without checkpointing,
and inference, as transformers and peft run them, compiled by torch, and accelerated here. The backbones are of full
size with random weights; before anything is timed, embeddings and gradients are held against those of float64.

``python -m benchmarks.bench_backbones --out figures.json`` measures those that fit the device.
"""

from __future__ import annotations

import copy
import functools
import itertools
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.modeling_layers import GradientCheckpointingLayer

import bgs_kernels
from benchmarks import command, environment, runner
from benchmarks.results import Figures, Results, bar, faster_than
from bgs.models.backbone import Backbone, load_backbone
from bgs.models.lora import LoraSettings, apply_lora
from bgs_kernels.bench import paired
from bgs_kernels.bench.paired import Contender, Unsupported

MODULE = "benchmarks.bench_backbones"


@dataclass(frozen=True)
class Size:
    """A backbone and its batch.

    Args:
        backbone: its name in ``bgs.models``.
        frames: of a clip.
        clips: of a batch.
        overrides: fields of its configuration.
        block: whether its first layer alone is measured, on tokens instead of clips.
    """

    backbone: str
    frames: int
    clips: int
    overrides: dict[str, Any] = field(default_factory=dict)
    block: bool = False


INIT = {"initializer_range": 0.02}
VIT_B = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072, **INIT}
VIT_L = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
AT_224 = {"image_size": 224, "patch_size": 16}
VJEPA = {"crop_size": 256, "frames_per_clip": 16, "patch_size": 16, **INIT}
VIT_G = {"hidden_size": 1408, "num_hidden_layers": 40, "num_attention_heads": 22, "mlp_ratio": 48 / 11}
CLIP_L = {"image_size": 224, "patch_size": 14, "intermediate_size": 4096, "projection_dim": 768, **VIT_L}

SIZES = {
    "V-JEPA 2-L block": Size("vjepa2", 16, 4, {**VJEPA, **VIT_L, "num_hidden_layers": 1}, block=True),
    "TimeSformer-B 8 frames": Size("timesformer", 8, 8, {**VIT_B, **AT_224, "num_frames": 8}),
    "V-JEPA 2-L": Size("vjepa2", 16, 4, {**VJEPA, **VIT_L}),
    "VideoMAE-B": Size("videomae", 16, 8, {**VIT_B, **AT_224, "num_frames": 16}),
    "CLIP-L/14": Size("clip", 8, 8, CLIP_L),
    "TimeSformer-B 16 frames": Size("timesformer", 16, 8, {**VIT_B, **AT_224, "num_frames": 16}),
    "V-JEPA 2-g": Size("vjepa2", 16, 2, {**VJEPA, **VIT_G}),
    "small V-JEPA 2 block": Size("vjepa2", 8, 1, {"num_hidden_layers": 1}, block=True),
    "small TimeSformer": Size("timesformer", 8, 1, {"num_hidden_layers": 2}),
    "small V-JEPA 2": Size("vjepa2", 8, 1, {"num_hidden_layers": 2}),
    "small VideoMAE": Size("videomae", 8, 1, {"num_hidden_layers": 2}),
    "small CLIP": Size("clip", 8, 1, {"num_hidden_layers": 2}),
}
"""The most important first."""

ON_CPU = tuple(name for name in SIZES if name.startswith("small"))
ON_CUDA = tuple(name for name in SIZES if name not in ON_CPU)

PASSES = ("training step", "checkpointed step", "inference")

COMPILED = ("V-JEPA 2-L block", "TimeSformer-B 8 frames", "small V-JEPA 2 block")
"""Where ``torch.compile`` is measured first; it takes longer to compile than all the rest of a case."""

LORA = LoraSettings(rank=8, alpha=16.0, dropout=0.1)

SECONDS_OF_COMMAND = 8
"""How many times longer than a single projection a whole backbone is timed: its steps are longer."""

BASELINES = {name: (name,) for name in ("plain", "compile")}

BLOCK, STEP, MEMORY = 1.5, 2.0, 1.0
"""What is asked of V-JEPA 2-L's block and of TimeSformer-B's training step, times faster than transformers and peft,
and of the peak memory of every case, over theirs."""

DEFINITIONS = {
    "step_ms": "training: normalised embeddings of uint8 clips, and the gradients of all adapters for a given gradient"
    " of the embeddings; inference: the embeddings, without gradients; of a block: the same of tokens. Started on an"
    " idle device with cold caches",
    "faster_than": "the same comparison's times of another contender over this one's, round by round",
    "plain": "transformers and peft, attention by scaled_dot_product_attention where transformers has it",
    "compile": "the same, every layer compiled by torch.compile",
    "accelerated": "the same after bgs_kernels.accelerate",
    "flops": "of the plain training step or inference, as torch counts them; recomputation under checkpointing is not"
    " useful and not counted",
    "peak_bytes": "most memory allocated during a step beyond weights and inputs, the results included; on a CPU most"
    " memory that the process came to occupy",
    "error": "relative norm of one clip's embedding and of all adapters' gradients together, against float64, without"
    " dropout",
}


class Views:
    """A backbone with adapters, and one view of it for every contender: modules of its own, the weights shared.

    Args:
        size: one of ``SIZES``.
        device: where it is.

    Attributes:
        fused: how many modules of the accelerated view run fused, by kind.
    """

    def __init__(self, size: str, device: torch.device) -> None:
        about = SIZES[size]
        torch.manual_seed(0)
        with device:
            self._base = load_backbone(about.backbone, "tiny", frames=about.frames, **about.overrides)
        self._base.to(device)
        apply_lora(self._base, LORA)
        draw = torch.Generator(device).manual_seed(0)
        with torch.no_grad():
            for module in self._base.modules():
                if isinstance(module, LoraLayer):  # an update of zero would hide A's gradient
                    tail: Any = module.lora_B["default"]
                    tail.weight.normal_(std=0.02, generator=draw)
        preprocess: Any = self._base.preprocess
        shape = (about.clips, about.frames, 3, preprocess.height, preprocess.width)
        self.block, self.device = about.block, device
        self.inputs = torch.randint(256, shape, generator=draw, dtype=torch.uint8, device=device)
        if about.block:
            config = self._base.model.config
            tokens = (about.frames // config.tubelet_size) * (config.crop_size // config.patch_size) ** 2
            self.inputs = torch.randn(about.clips, tokens, config.hidden_size, generator=draw, device=device)
        self.direction = torch.randn(self._shape(), generator=draw, device=device)
        self.fused: dict[str, int] = {}
        self._views: dict[str, Backbone] = {}

    def view(self, name: str) -> Backbone:
        """Give a contender's view.

        Raises:
            Unsupported: this version has no such contender.
        """
        if name not in self._views:
            shared = {id(each): each for each in itertools.chain(self._base.parameters(), self._base.buffers())}
            made = copy.deepcopy(self._base, shared)
            if name == "accelerated":
                if not hasattr(bgs_kernels, "accelerate"):
                    raise Unsupported("bgs_kernels has no accelerate")
                report = bgs_kernels.accelerate(made.encoder)
                self.fused = {kind: len(names) for kind, names in report.fused.items()}
            elif name == "compile":
                torch._dynamo.reset()
                for layer in made.model.modules():
                    if isinstance(layer, GradientCheckpointingLayer):
                        layer.compile(dynamic=False)
            self._views[name] = made
        return self._views[name]

    def exact(self) -> dict[str, torch.Tensor]:
        """Compute one clip's embedding and the adapters' gradients in float64."""
        wide = copy.deepcopy(self._base).double()
        wide.set_gradient_checkpointing(not self.block)  # attention in float64 keeps its scores
        for module in wide.modules():
            module.training = not isinstance(module, nn.Dropout)
        return self.results(wide, autocast=False)

    def results(self, model: Backbone, *, autocast: bool) -> dict[str, torch.Tensor]:
        """Compute one clip's embedding and the adapters' gradients, in the modes that the modules are in."""
        embedded, gradients = self.differentiated(model, clips=1, autocast=autocast)
        first = int(self.block)
        adapters = torch.cat([each.flatten() for each in gradients[first:]])
        found = {"embedding": embedded.detach(), "gradient of adapters": adapters}
        return found | ({"gradient of tokens": gradients[0]} if self.block else {})

    def differentiated(
        self, model: Backbone, *, autocast: bool, clips: int | None = None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Compute embeddings of the first clips, by default of all, and the gradients of a block's tokens and of the
        adapters."""
        x, adapters = self.inputs[:clips], [each for each in model.parameters() if each.requires_grad]
        wanted = adapters
        if self.block:  # the layer before it needs a gradient, and what it gives is no leaf
            x = x.detach().to(model.dtype).requires_grad_().view_as(x)
            wanted = [x, *adapters]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=autocast):
            embedded = self.embed(model, x)
        return embedded, torch.autograd.grad(embedded, wanted, self.direction[:clips].to(embedded.dtype))

    def embed(self, model: Backbone, x: torch.Tensor) -> torch.Tensor:
        """Embed clips, or pass tokens through the first layer."""
        if not self.block:
            return model.embed(x)
        passed: torch.Tensor = model.model.encoder.layer[0](x)[0]
        return passed

    def _shape(self) -> tuple[int, ...]:
        return tuple(self.inputs.shape) if self.block else (len(self.inputs), self._base.dim)


@functools.lru_cache(maxsize=1)
def views(size: str, device: torch.device) -> Views:
    """Build a backbone, and keep it until another one is asked for."""
    return Views(size, device)


@functools.lru_cache(maxsize=1)
def _exact_and_plain(size: str, device: torch.device) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    made = views(size, device)
    return made.exact(), made.results(made.view("plain").eval(), autocast=device.type == "cuda")


def contenders() -> tuple[str, ...]:
    """Name what can be measured."""
    return ("plain", "accelerated", "compile")


def contender(name: str, size: str, kind: str, device: torch.device) -> Contender:
    """Build what runs a case.

    Args:
        name: one of ``contenders``.
        size: one of ``SIZES``.
        kind: one of ``PASSES``.
        device: where.
    """
    made = views(size, device)
    model = made.view(name)
    autocast = device.type == "cuda"
    parts = ("embedding",) if kind == "inference" else tuple(_exact_and_plain(size, device)[0])
    warned: list[str] = []
    about = {"fused": made.fused, "warnings": warned} if name == "accelerated" else {}

    def results() -> dict[str, torch.Tensor]:
        model.set_gradient_checkpointing(False)
        model.eval()
        with warnings.catch_warnings(record=True) as caught:  # what falls back to plain modules says so
            found = made.results(model, autocast=autocast)
        warned.extend(f"{each.category.__name__}: {each.message}"[:300] for each in caught)
        model.set_gradient_checkpointing(kind == "checkpointed step")
        model.train(kind != "inference")
        return {part: found[part] for part in parts}

    def infer() -> torch.Tensor:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            return made.embed(model, made.inputs)

    def train() -> tuple[torch.Tensor, ...]:
        return made.differentiated(model, autocast=autocast)[1]

    return Contender(infer if kind == "inference" else train, results, about)


def measure(what: dict[str, Any]) -> dict[str, Any]:
    """Measure one case, as ``runner.run`` asks for it.

    Args:
        what: ``kind`` ("time" or "launches"), ``device``, ``size``, ``pass`` (one of ``PASSES``), ``contenders`` and
            ``seconds``, about how long one of them is timed.

    Returns:
        see ``paired.compare``.
    """
    device = torch.device(what["device"])
    size, kind = what["size"], what["pass"]
    builders = {name: functools.partial(contender, name, size, kind, device) for name in what["contenders"]}
    if what["kind"] == "launches":
        return paired.counted(builders)
    exact, plain = _exact_and_plain(size, device)
    if kind == "inference":
        exact = {"embedding": exact["embedding"]}
    found = paired.compare(
        builders,
        exact=exact,
        allowed=paired.errors(plain, exact),
        ours=("accelerated",),
        baselines=BASELINES,
        device=device,
        seconds=what["seconds"],
        graphs=False,
        begin=runner.begin,
    )
    flops = _flops(size, kind == "inference", device)
    for outcome in found["contenders"].values():
        outcome["flops"] = flops
    return found


@functools.lru_cache(maxsize=2)
def _flops(size: str, inference: bool, device: torch.device) -> int:
    plain = contender("plain", size, "inference" if inference else "training step", device)
    views(size, device).view("plain").set_gradient_checkpointing(False)
    with FlopCounterMode(display=False) as counter:
        plain.step()
    return int(counter.get_total_flops())


def bars(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compare accelerated backbones with plain ones."""
    accelerated = [case for case in cases if case["contender"] == "accelerated" and "step_ms" in case]
    found = []
    for size, least in (("V-JEPA 2-L block", BLOCK), ("TimeSformer-B 8 frames", STEP)):
        ratios = [
            ratio
            for case in accelerated
            if case["size"] == size
            and case["dimensions"]["pass"] == "training step"
            and (ratio := faster_than(case, "plain")) is not None
        ]
        what = f"{size}, training step: times faster than plain"
        found.append(bar(what, min(ratios, default=None), least=least, over=len(ratios)))
    plain = {(case["size"], case["mode"]): case for case in cases if case["contender"] == "plain"}
    peaks = [
        case["peak_bytes"] / other["peak_bytes"]
        for case in accelerated
        if (other := plain.get((case["size"], case["mode"]))) is not None and "peak_bytes" in other
    ]
    found.append(bar("peak memory over plain's, largest", max(peaks, default=None), most=MEMORY, over=len(peaks)))
    return found


def jobs(device: torch.device, names: tuple[str, ...], sizes: tuple[str, ...], seconds: float) -> Iterator[runner.Job]:
    """List what to measure, the most important first."""
    uncompiled = [name for name in names if name != "compile"]
    for size in sizes:  # all that is done with a backbone comes together: it is built once
        for kind in PASSES:
            if not SIZES[size].block or kind != "checkpointed step":
                yield _job("time", device, size, kind, uncompiled, seconds)
    yield from _compiled(device, names, [size for size in sizes if size in COMPILED], seconds)
    for size in sizes:
        if device.type == "cuda":
            yield _job("launches", device, size, "training step", uncompiled, seconds)
    yield from _compiled(device, names, [size for size in sizes if size not in COMPILED], seconds)


def _compiled(device: torch.device, names: tuple[str, ...], sizes: list[str], seconds: float) -> Iterator[runner.Job]:
    """List what compiled layers are measured at, beside what they are compared with, which has its entries already."""
    for size in sizes:
        for kind in ("training step", "inference"):
            if "compile" in names:
                yield _job("time", device, size, kind, list(names), seconds)


def _job(kind: str, device: torch.device, size: str, done: str, names: list[str], seconds: float) -> runner.Job:
    what = {
        "kind": kind,
        "device": str(device),
        "seconds": seconds,
        "size": size,
        "pass": done,
        "mode": f"{done}, {'autocast bfloat16' if device.type == 'cuda' else 'float32'}",
        "contenders": names,
    }
    # the profiler stays in a process that counted launches, and what was compiled in one that compiled
    process = "counts" if kind == "launches" else "compiled" if "compile" in names else "times"
    return runner.Job(what, 150.0 if "compile" in names else 60.0, process)


def _about(what: dict[str, Any]) -> dict[str, Any]:
    size = SIZES[what["size"]]
    return {"dimensions": {"pass": what["pass"], "clips": size.clips, "frames": size.frames, **size.overrides}}


def _rates(entry: dict[str, Any], ceilings: dict[str, Any]) -> dict[str, float]:
    taken = entry["step_ms"]["median_ms"]
    found = {"tflops": entry["flops"] / taken / 1e9}
    if ceilings:
        ceiling = "bfloat16" if "autocast" in entry["mode"] else "float32 highest"
        floor = 1e3 * entry["flops"] / ceilings["flops"][ceiling]
        found |= {"floor_ms": floor, "share_of_floor": floor / taken}
    return found


def new_results(figures: Figures) -> Results:
    """Begin or continue the run in a results file."""
    return Results(
        figures,
        benchmark="backbones",
        definitions=DEFINITIONS,
        baselines=BASELINES,
        about=_about,
        rates=_rates,
        bars=bars if figures.device.type == "cuda" else None,
        settings={"rank": LORA.rank, "alpha": LORA.alpha, "dropout": LORA.dropout},
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; the exit status is 1 when a result was wrong, however the rest went."""
    device = environment.default_device()
    parser = command.parser(MODULE, __doc__, device=device, sizes=SIZES, contenders=contenders())
    given = parser.parse_args(arguments)
    sizes, seconds = command.chosen(given, ON_CUDA if device.type == "cuda" else ON_CPU, quick=2)
    results = new_results(given.out)
    todo = jobs(device, tuple(given.contenders), sizes, SECONDS_OF_COMMAND * seconds)
    return command.run(results, todo, module=MODULE, seconds=given.seconds)


if __name__ == "__main__":
    sys.exit(main())
