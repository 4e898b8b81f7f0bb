from typing import TypedDict

class BuildInfo(TypedDict):
    compiler: str
    cxx_standard: str
    openmp: int | None
    cuda_compiler: str | None
    cuda_architectures: list[str]

def build_info() -> BuildInfo: ...

Tensor = tuple[int, int, tuple[int, ...]] | None

CUDA_SMALL_ROWS: int
CUDA_SMALL_COLUMNS: int

def cuda_hybrid_loss_small_workspace(
    sets: int,
    rows: int,
    columns: int,
    target_columns: int,
    triplets: int,
    *,
    target: bool,
    weights: bool,
    triplet_weights: bool,
    gradient: bool,
) -> int: ...
def cuda_hybrid_loss_small(
    embeddings: Tensor,
    triplets: Tensor,
    target: Tensor,
    target_embeddings: Tensor,
    mask: Tensor,
    weights: Tensor,
    triplet_weights: Tensor,
    triplet_targets: Tensor,
    lengths: Tensor,
    sets: int,
    rows: int,
    columns: int,
    target_columns: int,
    count: int,
    alpha: float,
    beta: float,
    triplet: int,
    temperature: float,
    margin: float,
    metric: int,
    target_metric: int,
    rsa: int,
    losses: Tensor,
    terms: Tensor,
    gradient: Tensor,
    workspace: int,
    bytes: int,
    device: int,
    stream: int,
) -> None: ...
def cuda_fractional_rank_workspace(sets: int, count: int, device: int) -> int: ...
def cuda_fractional_rank(
    values: Tensor, sets: int, count: int, ranks: Tensor, workspace: int, bytes: int, device: int, stream: int
) -> None: ...
