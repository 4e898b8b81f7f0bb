from typing import TypedDict

class BuildInfo(TypedDict):
    compiler: str
    cxx_standard: str
    openmp: int | None
    cuda_compiler: str | None
    cuda_architectures: list[str]

def build_info() -> BuildInfo: ...
