"""How long the hybrid loss takes beside what a user would write without this package: ``python -m bgs_kernels.bench``
measures a size of one's own, and the project's benchmarks use the same parts.
"""
