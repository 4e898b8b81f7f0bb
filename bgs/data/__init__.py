"""Odd-one-out judgments and the clips they are about: reading, geometry, splits, and preparing video for a model."""

from bgs.data.cleaning import CleaningReport
from bgs.data.formats import load_dataset, write_csv, write_vice
from bgs.data.geometry import PairCounts, SoftTargets, dissimilarity, pair_counts, soft_targets
from bgs.data.judgments import Dataset, Judgments, Ratings, Repeats
from bgs.data.splits import SplitCounts, count_judgments, folds, resolve_splits, split_items

__all__ = [
    "CleaningReport",
    "Dataset",
    "Judgments",
    "PairCounts",
    "Ratings",
    "Repeats",
    "SoftTargets",
    "SplitCounts",
    "count_judgments",
    "dissimilarity",
    "folds",
    "load_dataset",
    "pair_counts",
    "resolve_splits",
    "soft_targets",
    "split_items",
    "write_csv",
    "write_vice",
]
