"""Data sets from files that are already here, and how they are dealt out. Knows no network."""

from edgeweave.data.dataset import ArrayDataset, Normalisation
from edgeweave.data.sources import NORMALISATIONS, SOURCES, DataPair, load_source
from edgeweave.data.splits import Split, SplitKind, deal, told_split

__all__ = [
    "NORMALISATIONS",
    "SOURCES",
    "ArrayDataset",
    "DataPair",
    "Normalisation",
    "Split",
    "SplitKind",
    "deal",
    "load_source",
    "told_split",
]
