"""What every process of the distributed test of ``accelerate`` runs, in a module that a new process can import."""

from pathlib import Path

import torch
import torch.distributed as dist
from patch_models import NAMES, clips, embed, plain, twin
from torch.nn.parallel import DistributedDataParallel

from bgs_kernels import accelerate


def work(rank: int, world: int, folder: str) -> None:
    """Write this rank's gradients of the plain and of the accelerated model, averaged over ranks by DDP."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    found = {}
    for name in NAMES:
        model = plain(name).train()
        accelerated = twin(model)
        accelerate(accelerated)
        for kind, each in (("plain", model), ("fused", accelerated)):
            # the base model is called inside, so the wrapper gets a module whose forward is the embedding
            wrapped = DistributedDataParallel(Embedding(each, name))
            wrapped(clips(2)[rank : rank + 1]).square().sum().backward()
            found[name, kind] = [p.grad for p in wrapped.parameters() if p.grad is not None]
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


class Embedding(torch.nn.Module):
    """A model as the function that embeds clips."""

    def __init__(self, model: torch.nn.Module, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name
        used = embed(model, name, clips(1)).sum()
        trained = [p for p in model.parameters() if p.requires_grad]
        for parameter, gradient in zip(trained, torch.autograd.grad(used, trained, allow_unused=True), strict=True):
            parameter.requires_grad_(gradient is not None)  # DDP would wait for those of V-JEPA 2's predictor

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embed clips."""
        return embed(self.model, self.name, pixels)
