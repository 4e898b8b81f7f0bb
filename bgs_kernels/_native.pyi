from typing import TypedDict

class BuildInfo(TypedDict):
    compiler: str
    cxx_standard: str
    openmp: int | None
    cuda_compiler: str | None
    cuda_architectures: list[str]

Tensor = tuple[int, int, tuple[int, ...]] | None

def build_info() -> BuildInfo: ...
def are_sound(triplets: Tensor, sets: int, count: int, rows: int, threads: int) -> bool: ...
def cpu_isa() -> str: ...
def held_bytes() -> int: ...
def release_held() -> None: ...
def poison(wanted: bool, /) -> None: ...

class LossSettings:
    def __init__(
        self,
        alpha: float,
        beta: float,
        margin_form: bool,
        temperature: float,
        margin: float,
        metric: int,
        target_metric: int,
        centred: bool,
    ) -> None: ...

def hybrid_loss(
    sizes: tuple[int, int, int, int, int],
    of_sets: bool,
    embeddings: Tensor,
    triplets: Tensor,
    target: Tensor,
    target_embeddings: Tensor,
    mask: Tensor,
    weights: Tensor,
    triplet_weights: Tensor,
    triplet_targets: Tensor,
    lengths: Tensor,
    settings: LossSettings,
    distinct: bool,
    threads: int,
    small_rows: int,
    kept_bytes: int,
    losses: int,
    terms: int,
    gradient: int,
    /,
) -> None: ...
def pairwise_distance(
    sizes: tuple[int, int, int, int],
    x: Tensor,
    y: Tensor,
    metric: int,
    threads: int,
    distances: int,
    upstream: Tensor,
    x_gradient: int,
    y_gradient: int,
    /,
) -> None: ...
def fractional_rank(values: Tensor, rows: int, columns: int, ranks: Tensor, threads: int) -> None: ...
def rank_correlation(
    distances: Tensor,
    target: Tensor,
    observed: Tensor,
    sets: int,
    rows: int,
    all_finite: bool,
    nan_observed: bool,
    rounding: float,
    bounded: bool,
    target_bounded: bool,
    method: int,
    correlations: Tensor,
    threads: int,
) -> None: ...
def triplet_counts(triplets: Tensor, count: int, rows: int, shown: Tensor, together: Tensor, threads: int) -> bool: ...

# only where the module was built for CUDA
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
