"""Data sets by name, from files that are already here. Downloads nothing, unpickles nothing.

digits         8x8 digits that come with scikit-learn
mnist          IDX files in a folder: 28x28, ten classes
fashion-mnist  the same, other pictures
idx            IDX files of any size of picture and any number of classes
cifar10        the binary version of CIFAR-10 in a folder
npz            x_train, y_train, x_test, y_test in one file, or x and y, which are then split
images         pictures in a folder for each class (_pictures.py)
csv(128, 64)   windows of 128 rows, 64 apart, of tables (_tables.py); csv: every row a sample
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch

from edgeweave.core.errors import ConfigError
from edgeweave.data._formats import Array, Bytes, read_cifar, read_idx, read_npz
from edgeweave.data._pictures import (
    Pictures,
    class_numbers,
    class_paths,
    is_numbered,
    read_pictures,
)
from edgeweave.data._tables import Windows, are_classes, most_frequent, read_tables
from edgeweave.data.dataset import ArrayDataset, Normalisation

__all__ = ["NORMALISATIONS", "SOURCES", "DataPair", "load_source"]

NORMALISATIONS = MappingProxyType(
    {
        # Over all training images, computed from shared/data and from scikit-learn's copy.
        "digits": Normalisation((0.3053,), (0.3760,)),
        "mnist": Normalisation((0.1307,), (0.3081,)),
        "fashion-mnist": Normalisation((0.2860,), (0.3530,)),
        # Over the 50,000 training images, as usually published; the 20,000 of shared/data give
        # 0.4928 0.4829 0.4471 and 0.2476 0.2442 0.2620.
        "cifar10": Normalisation((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    }
)

_NPZ_WHOLE = ("x", "y")
_NPZ_PARTS = ("x_train", "y_train", "x_test", "y_test")
_TEST_SHARE = 0.2
_SPLIT_SEED = 0


@dataclass(frozen=True, slots=True)
class DataPair:
    """What to train on and what to test with."""

    train: ArrayDataset
    test: ArrayDataset
    n_classes: int
    """0 where targets are real numbers."""
    description: str
    class_names: tuple[str, ...] = ()
    """By number, where the files name classes by words."""


@dataclass(frozen=True, slots=True)
class _Arrays:
    x_train: Array
    y_train: Array
    x_test: Array
    y_test: Array
    class_names: tuple[str, ...] = field(default=(), kw_only=True)


def load_source(name: str, *, path: Path | None, normalise: bool = False) -> DataPair:
    """Read a data set whole into memory; inputs lie in 0..1 unless ``normalise`` is asked for.

    A split that the files do not make is 80/20, the same in every run, and keeps the share of each
    class. A file that is missing, damaged or foreign is a ``ConfigError``.

    >>> load_source("digits", path=None).description
    'digits: 1438 samples to train, 359 to test, of 1x8x8, 10 classes'
    """
    windows = Windows.told(name)
    if name not in SOURCES and windows is None:
        close = difflib.get_close_matches(name, SOURCES, n=1)
        fix = f"Did you mean {close[0]}?" if close else f"Choose one of {', '.join(SOURCES)}."
        raise ConfigError(f"a data source has one of the known names (got {name!r}). {fix}")
    if normalise and name not in NORMALISATIONS:
        raise ConfigError(
            f"normalise needs the mean and std of a known data set ({name} has none; known: "
            f"{', '.join(NORMALISATIONS)}). Normalise in the model or in the file."
        )
    arrays = SOURCES[name](path) if windows is None else _tables(path, windows)
    return _pair(name, arrays, NORMALISATIONS[name] if normalise else None)


def _digits(path: Path | None) -> _Arrays:
    if path is not None:
        raise ConfigError(f"digits comes with scikit-learn (got the path {path}). Give no path.")
    from sklearn.datasets import load_digits  # noqa: PLC0415  (a second that others need not pay)

    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[:, None]
    return _split(images, digits.target)


def _known_idx(path: Path | None) -> _Arrays:
    arrays = _idx(path)
    n_classes = 1 + max(arrays.y_train.max(), arrays.y_test.max())
    if arrays.x_train.shape[1:] != (1, 28, 28) or n_classes > 10:
        raise ConfigError(
            f"{path}: MNIST and its likes are 28x28 pictures of ten classes (got "
            f"{_shape(arrays.x_train)} and {n_classes}). Use the source idx for other pictures."
        )
    return arrays


def _idx(path: Path | None) -> _Arrays:
    folder = _needed(path, "a folder with IDX files")
    x_train, y_train = _idx_part(folder, "train")
    x_test, y_test = _idx_part(folder, "t10k")
    return _Arrays(x_train, y_train, x_test, y_test)


def _idx_part(folder: Path, part: str) -> tuple[Bytes, Bytes]:
    images_path = _plain_or_compressed(folder / f"{part}-images-idx3-ubyte")
    labels_path = _plain_or_compressed(folder / f"{part}-labels-idx1-ubyte")
    images = read_idx(images_path, n_dimensions=3)
    labels = read_idx(labels_path, n_dimensions=1)
    if len(images) != len(labels):
        raise ConfigError(
            f"{images_path}: every picture has one label ({len(images)} pictures, {len(labels)} "
            f"labels in {labels_path.name}). Fetch both files from one place."
        )
    return images[:, None], labels


def _plain_or_compressed(plain: Path) -> Path:
    compressed = plain.with_name(f"{plain.name}.gz")
    return compressed if compressed.exists() and not plain.exists() else plain


def _cifar10(path: Path | None) -> _Arrays:
    folder = _needed(path, "the folder cifar-10-batches-bin")
    batches = [read_cifar(folder / f"data_batch_{number}.bin") for number in range(1, 6)]
    x_train, y_train = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    x_test, y_test = read_cifar(folder / "test_batch.bin")
    return _Arrays(x_train, y_train, x_test, y_test)


def _npz(path: Path | None) -> _Arrays:
    path = _needed(path, "an npz file")
    arrays = read_npz(path, (*_NPZ_WHOLE, *_NPZ_PARTS))
    names = _NPZ_WHOLE if "x" in arrays else _NPZ_PARTS
    missing = [name for name in names if name not in arrays]
    if missing:
        raise ConfigError(
            f"{path}: an npz file holds x_train, y_train, x_test and y_test, or x and y (it lacks "
            f"{', '.join(missing)} and holds of them {', '.join(arrays) or 'nothing'}). "
            "Name the arrays in numpy.savez."
        )
    for name in names:
        _check_numbers(path, name, arrays[name])
    for x, y in zip(names[::2], names[1::2], strict=True):
        _check_lengths(path, {x: arrays[x], y: arrays[y]})
    needed = [arrays[name] for name in names]
    return _split(*needed) if len(names) == 2 else _Arrays(*needed)


def _images(path: Path | None) -> _Arrays:
    folder = _needed(path, "a folder of pictures")
    if not folder.is_dir():
        raise ConfigError(f"{folder}: a folder of pictures exists (there is none). Check the path.")
    parts = [folder / "train", folder / "test"]
    has_parts = all(part.is_dir() for part in parts)
    found = [class_paths(part) for part in (parts if has_parts else [folder])]
    numbers = class_numbers(sorted({name for each in found for name in each}))
    inputs = read_pictures([path for each in found for paths in each.values() for path in paths])
    targets = [_classes(each, numbers) for each in found]
    n_train = len(targets[0])
    whole = (
        _Arrays(inputs[:n_train], targets[0], inputs[n_train:], targets[1])
        if has_parts
        else _split(inputs, targets[0])
    )
    names = () if is_numbered(numbers) else tuple(numbers)
    return replace(whole, class_names=names)


def _classes(pictures: Pictures, numbers: Mapping[str, int]) -> Array:
    """The class of each picture, in their order."""
    return np.repeat([numbers[name] for name in pictures], [len(p) for p in pictures.values()])


def _csv(path: Path | None) -> _Arrays:
    return _tables(path, Windows())


def _tables(path: Path | None, windows: Windows) -> _Arrays:
    place = _needed(path, "a CSV file or a folder with such files")
    if (place / "train").is_dir() and (place / "test").is_dir():
        parts = [read_tables(place / "train"), read_tables(place / "test")]
    else:
        tables = read_tables(place)
        if windows.n_rows == 1:
            return _split(*_cut(place, windows, tables, like=tables))
        ends = [len(table) - round(len(table) * _TEST_SHARE) for table in tables]
        parts = [
            [table[:end] for table, end in zip(tables, ends, strict=True)],
            [table[end:] for table, end in zip(tables, ends, strict=True)],
        ]
    like = [*parts[0], *parts[1]]
    train, test = (_cut(place, windows, part, like=like) for part in parts)
    return _Arrays(*train, *test)


def _cut(
    path: Path, windows: Windows, tables: Sequence[Array], *, like: Sequence[Array]
) -> tuple[Array, Array]:
    """Inputs and targets of all tables; ``like``: those that say whether targets are classes."""
    if len({table.shape[1] for table in like}) > 1:
        raise ConfigError(f"{path}: all tables have the same columns. Correct those of one part.")
    cut = [windows.cut(table, path) for table in tables]
    inputs, targets = (np.concatenate(each) for each in zip(*cut, strict=True))
    if not len(inputs):
        raise ConfigError(
            f"{path}: a window of {windows.n_rows} rows fits into a table (the longest part has "
            f"{max(map(len, tables))}; a fifth of each table is kept for testing). Make it shorter."
        )
    if are_classes([table[:, -1] for table in like]):
        return inputs, most_frequent(targets)
    return inputs, targets[:, -1].astype(np.float32)


def _check_numbers(path: Path, name: str, array: Array) -> None:
    if array.ndim == 0 or array.size == 0:
        rule, fact = "has at least one sample", f"its shape is {array.shape}"
    elif array.dtype == np.uint64:
        rule, fact = "has a type that torch computes with", "it is uint64"
    elif array.dtype.kind == "f" and not np.isfinite(array).all():
        rule, fact = "has finite numbers only", "there are NaN or infinite ones"
    elif name.startswith("y") and array.dtype.kind == "i" and array.min() < 0:
        rule, fact = "has classes that count from 0", f"the least is {array.min()}"
    else:
        return
    raise ConfigError(f"{path}: {name} {rule} ({fact}). Correct the array and save it again.")


def _check_lengths(path: Path, arrays: dict[str, Array]) -> None:
    if len({len(array) for array in arrays.values()}) > 1:
        facts = ", ".join(f"{name}: {len(array)}" for name, array in arrays.items())
        raise ConfigError(f"{path}: every input has one target ({facts}). Save equal lengths.")


def _split(inputs: Array, targets: Array) -> _Arrays:
    """A fifth of every class to test. ``RandomState``, because its numbers never change."""
    random = np.random.RandomState(_SPLIT_SEED)
    is_class = targets.dtype.kind in "iu" and targets.ndim == 1
    groups = targets if is_class else np.zeros(len(targets), np.int64)
    is_test = np.zeros(len(targets), bool)
    for group in np.unique(groups):
        members = random.permutation(np.flatnonzero(groups == group))
        is_test[members[: round(len(members) * _TEST_SHARE)]] = True
    return _Arrays(inputs[~is_test], targets[~is_test], inputs[is_test], targets[is_test])


def _pair(name: str, arrays: _Arrays, normalisation: Normalisation | None) -> DataPair:
    if not len(arrays.x_train) or not len(arrays.x_test):
        raise ConfigError(
            f"{name}: there are samples to train on and samples to test with (got "
            f"{len(arrays.x_train)} and {len(arrays.x_test)}). Give more data."
        )
    if arrays.x_train.shape[1:] != arrays.x_test.shape[1:]:
        raise ConfigError(
            f"{name}: samples to train on and to test with have one shape (got "
            f"{_shape(arrays.x_train)} and {_shape(arrays.x_test)}). Correct the files."
        )
    n_classes = 0
    if arrays.y_train.dtype.kind in "iu":
        n_classes = 1 + int(max(arrays.y_train.max(), arrays.y_test.max()))
    return DataPair(
        _dataset(arrays.x_train, arrays.y_train, normalisation),
        _dataset(arrays.x_test, arrays.y_test, normalisation),
        n_classes,
        f"{name}: {len(arrays.x_train)} samples to train, {len(arrays.x_test)} to test, of "
        f"{_shape(arrays.x_train)}, {f'{n_classes} classes' if n_classes else 'real targets'}",
        arrays.class_names,
    )


def _dataset(inputs: Array, targets: Array, normalisation: Normalisation | None) -> ArrayDataset:
    return ArrayDataset(_tensor(inputs), _tensor(targets), normalisation=normalisation)


def _tensor(array: Array) -> torch.Tensor:
    signed = {"uint16": np.int32, "uint32": np.int64}.get(array.dtype.name)
    if signed is not None:
        array = array.astype(signed)
    return torch.from_numpy(np.ascontiguousarray(array))


def _shape(inputs: Array) -> str:
    return "x".join(map(str, inputs.shape[1:])) or "one number"


def _needed(path: Path | None, what: str) -> Path:
    if path is None:
        raise ConfigError(f"this data source needs {what} (no path given). Set data.path.")
    return path


SOURCES: MappingProxyType[str, Callable[[Path | None], _Arrays]] = MappingProxyType(
    {
        "digits": _digits,
        "mnist": _known_idx,
        "fashion-mnist": _known_idx,
        "idx": _idx,
        "cifar10": _cifar10,
        "npz": _npz,
        "images": _images,
        "csv": _csv,
    }
)
"""The known names, and what reads each."""
