from typing import TypedDict

class BuildInfo(TypedDict):
    compiler: str
    cxx_standard: str
    openmp: int | None
    cuda_compiler: str | None
    cuda_architectures: list[str]

def build_info() -> BuildInfo: ...
def cpu_isa() -> str: ...
def held_bytes() -> int: ...
def poison(wanted: bool, /) -> None: ...

_Tensor = tuple[int, int, tuple[int, ...]] | None

def hybrid_loss(
    sizes: tuple[int, int, int, int, int],
    embeddings: _Tensor,
    triplets: _Tensor,
    target: _Tensor,
    target_embeddings: _Tensor,
    mask: _Tensor,
    weights: _Tensor,
    triplet_weights: _Tensor,
    triplet_targets: _Tensor,
    lengths: _Tensor,
    alpha: float,
    beta: float,
    margin_form: bool,
    temperature: float,
    margin: float,
    metric: int,
    target_metric: int,
    centred: bool,
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
    x: _Tensor,
    y: _Tensor,
    metric: int,
    threads: int,
    distances: int,
    upstream: _Tensor,
    x_gradient: int,
    y_gradient: int,
    /,
) -> None: ...
