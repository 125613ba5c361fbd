"""Data sets by name: what the files must be, what comes of them, and real ones where they are."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeweave.core.errors import ConfigError
from edgeweave.data._formats import read_npz
from edgeweave.data.sources import NORMALISATIONS, load_source

DATA = Path(os.environ.get("EDGEWEAVE_DATA", Path(__file__).parents[3] / "shared" / "data"))


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx_folder(folder: Path, *, side: int = 28, compressed: bool = False) -> None:
    random = np.random.RandomState(0)
    for part, n in (("train", 7), ("t10k", 4)):
        images = random.randint(0, 256, (n, side, side)).astype(np.uint8)
        labels = np.arange(n, dtype=np.uint8)
        for stem, array in (("images-idx3", images), ("labels-idx1", labels)):
            name = f"{part}-{stem}-ubyte"
            if compressed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                (folder / name).write_bytes(idx(array))


def write_cifar_folder(folder: Path) -> None:
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        record = bytes([number]) + bytes([number] * 1024 + [50] * 1024 + [255] * 1024)
        (folder / f"{name}.bin").write_bytes(record * 2)


def test_digits_are_split_the_same_way_every_time_with_all_classes_in_both_parts() -> None:
    pair, again = (load_source("digits", path=None) for _ in range(2))
    inputs, targets = pair.train.batch(torch.arange(len(pair.train)))
    assert (inputs.dtype, inputs.shape[1:]) == (torch.float32, (1, 8, 8))
    assert (float(inputs.min()), float(inputs.max())) == (0.0, 1.0)
    assert torch.equal(targets, again.train.batch(torch.arange(len(pair.train)))[1])
    tested = pair.test.batch(torch.arange(len(pair.test)))[1]
    assert targets.bincount().min() > 130
    assert tested.bincount().tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]
    assert (pair.n_classes, len(pair.train) + len(pair.test)) == (10, 1797)


def test_digits_take_no_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="comes with scikit-learn"):
        load_source("digits", path=tmp_path)


@pytest.mark.parametrize("compressed", [False, True])
def test_idx_files_are_read_plain_and_compressed(tmp_path: Path, *, compressed: bool) -> None:
    write_idx_folder(tmp_path, compressed=compressed)
    pair = load_source("mnist", path=tmp_path)
    pixels = np.random.RandomState(0).randint(0, 256, (7, 28, 28)).astype(np.float32)
    assert torch.equal(pair.train[6][0], torch.from_numpy(pixels[6:7] / 255))
    assert int(pair.train[6][1]) == 6
    assert pair.description == "mnist: 7 samples to train, 4 to test, of 1x28x28, 7 classes"


def test_other_sizes_of_picture_are_idx_but_not_mnist(tmp_path: Path) -> None:
    write_idx_folder(tmp_path, side=5)
    assert load_source("idx", path=tmp_path).train[0][0].shape == (1, 5, 5)
    with pytest.raises(ConfigError, match=r"28x28 pictures of ten classes \(got 1x5x5 and 7\)"):
        load_source("mnist", path=tmp_path)


def test_pictures_without_their_labels_are_refused(tmp_path: Path) -> None:
    write_idx_folder(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(6, np.uint8)))
    with pytest.raises(
        ConfigError, match=r"one label \(7 pictures, 6 labels in train-labels-idx1-ubyte\)"
    ):
        load_source("mnist", path=tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"begins with 00 00 08 03 and its sizes \(it begins with nothing\)"),
        (b"\x00\x00\x0d\x03" + b"\0" * 12, r"\(it begins with 00 00 0d 03\)"),
        (struct.pack(">4B3I", 0, 0, 8, 3, *[2**32 - 1] * 3), "the file can hold 16 B"),
        (idx(np.zeros((2, 28, 28), np.uint8))[:-1], r"\(1568 bytes of data, there are 1567\)"),
        (idx(np.zeros((2, 28, 28), np.uint8)) + b"x", r"\(1568 bytes of data, there are more\)"),
    ],
)
def test_an_idx_file_that_breaks_a_rule_is_named(
    tmp_path: Path, content: bytes, message: str
) -> None:
    write_idx_folder(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"{path}.*{message}"):
        load_source("mnist", path=tmp_path)


def test_a_compressed_file_cannot_claim_more_than_deflate_can_hold(tmp_path: Path) -> None:
    write_idx_folder(tmp_path, compressed=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(struct.pack(">4B3I", 0, 0, 8, 3, 60000, 28, 28)))
    with pytest.raises(ConfigError, match=r"it says 44\.9 MiB, the file can hold"):
        load_source("mnist", path=tmp_path)


def test_a_cut_compressed_file_is_named(tmp_path: Path) -> None:
    write_idx_folder(tmp_path, compressed=True)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ConfigError, match=r"t10k-images-idx3-ubyte.gz: .* to its end \(EOFError"):
        load_source("mnist", path=tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="train-images-idx3-ubyte: an IDX file exists"):
        load_source("mnist", path=tmp_path)
    with pytest.raises(ConfigError, match=r"data_batch_1\.bin: a CIFAR-10 batch exists"):
        load_source("cifar10", path=tmp_path)
    with pytest.raises(ConfigError, match=r"no\.npz: an npz file exists"):
        load_source("npz", path=tmp_path / "no.npz")


def test_cifar_batches_are_joined_in_order_as_planes_of_colour(tmp_path: Path) -> None:
    write_cifar_folder(tmp_path)
    pair = load_source("cifar10", path=tmp_path)
    assert pair.description == "cifar10: 10 samples to train, 2 to test, of 3x32x32, 6 classes"
    image, label = pair.train[9]
    assert int(label) == 4
    assert [float(image[c, 31, 31]) * 255 for c in range(3)] == pytest.approx([4, 50, 255])


def test_a_cifar_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    write_cifar_folder(tmp_path)
    path = tmp_path / "test_batch.bin"
    path.write_bytes(b"\x05" * 3074)
    with pytest.raises(ConfigError, match=r"records of 3073 bytes \(the file has 3074 bytes\)"):
        load_source("cifar10", path=tmp_path)
    path.write_bytes(bytes(3073) + b"\x0a" * 3073)
    with pytest.raises(ConfigError, match=r"is 0 to 9 \(record 1 has 10\)"):
        load_source("cifar10", path=tmp_path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_file_with_its_own_split_is_taken_as_it_is(tmp_path: Path, save) -> None:
    path = tmp_path / "own.npz"
    x = np.random.RandomState(1).rand(5, 3)
    save(path, x_train=np.asfortranarray(x), y_train=np.arange(5), x_test=x[:2], y_test=[4, 7])
    pair = load_source("npz", path=path)
    assert pair.n_classes == 8
    inputs, targets = pair.train.batch(torch.arange(5))
    assert torch.equal(inputs, torch.from_numpy(x).float())
    assert targets.tolist() == [0, 1, 2, 3, 4]


def test_an_npz_file_without_split_gives_a_fifth_of_each_class_to_test(tmp_path: Path) -> None:
    path = tmp_path / "whole.npz"
    np.savez(path, x=np.arange(60)[:, None], y=np.repeat([0, 1, 2], [10, 20, 30]).astype(">u2"))
    pair = load_source("npz", path=path)
    inputs, targets = pair.test.batch(torch.arange(len(pair.test)))
    assert targets.bincount().tolist() == [2, 4, 6]
    seen = pair.train.batch(torch.arange(len(pair.train)))[0]
    assert sorted([*inputs.flatten().tolist(), *seen.flatten().tolist()]) == list(range(60))


def test_real_targets_have_no_classes(tmp_path: Path) -> None:
    path = tmp_path / "real.npz"
    np.savez(path, x=np.ones((10, 2)), y=np.linspace(0, 1, 10))
    pair = load_source("npz", path=path)
    assert (pair.n_classes, len(pair.train), len(pair.test)) == (0, 8, 2)
    assert pair.description.endswith("of 2, real targets")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones((9, 2))}, r"it lacks y and holds of them x"),
        ({"a": np.ones(2)}, r"lacks x_train, y_train, x_test, y_test and holds of them nothing"),
        ({"x": np.ones((9, 2)), "y": np.ones(8)}, r"every input has one target \(x: 9, y: 8\)"),
        ({"x": np.full((9, 2), np.nan), "y": np.ones(9)}, r"x has finite numbers only"),
        ({"x": np.ones((9, 2)), "y": np.arange(9) - 1}, r"count from 0 \(the least is -1\)"),
        ({"x": np.ones((9, 2), np.uint64), "y": np.ones(9)}, r"it is uint64"),
        ({"x": np.ones((0, 2)), "y": np.ones(0)}, r"at least one sample \(its shape is \(0, 2\)"),
        ({"x": np.ones((1, 2)), "y": np.ones(1)}, r"samples to test with \(got 1 and 0\)"),
        ({"x": np.ones((9, 2)), "y": np.array([None] * 9)}, r"y.npy\]: .*'\|O'.*without objects"),
        ({"x": np.ones((9, 2)), "y": np.array(["a"] * 9)}, r"without objects"),
        ({"x": np.ones((1,) * 9), "y": np.ones(1)}, r"at most 8 dimensions \(got <f8 and 9\)"),
        (
            {
                "x_train": np.ones((2, 3)),
                "y_train": [1, 0],
                "x_test": np.ones((1, 4)),
                "y_test": [1],
            },
            r"have one shape \(got 3 and 4\)",
        ),
    ],
)
def test_arrays_that_break_a_rule_are_named(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    with pytest.raises(ConfigError, match=message):
        load_source("npz", path=path)


def test_an_unknown_source_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"\(got 'minst'\)\. Did you mean mnist\?"):
        load_source("minst", path=None)
    with pytest.raises(ConfigError, match="Choose one of digits, mnist, fashion-mnist, idx, cif"):
        load_source("??", path=None)


def test_a_source_of_files_needs_a_path() -> None:
    with pytest.raises(ConfigError, match=r"needs an npz file \(no path given\)\. Set data\.path"):
        load_source("npz", path=None)


def test_normalised_digits_have_mean_0_and_deviation_1() -> None:
    pair = load_source("digits", path=None, normalise=True)
    inputs = pair.train.batch(torch.arange(len(pair.train)))[0]
    assert abs(float(inputs.mean())) < 0.01
    assert abs(float(inputs.std()) - 1) < 0.01


def test_files_of_unknown_content_are_not_normalised(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="normalise needs the mean and std of a known data set"):
        load_source("npz", path=tmp_path, normalise=True)


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "mnist"), ("fashion-mnist", "fashion_mnist")]
)
def test_the_real_pictures_have_the_mean_and_deviation_we_state(name: str, folder: str) -> None:
    if not (DATA / folder).is_dir():
        pytest.skip(f"{DATA / folder} is absent")
    pair = load_source(name, path=DATA / folder)
    assert (
        pair.description == f"{name}: 60000 samples to train, 10000 to test, of 1x28x28, 10 classes"
    )
    inputs, targets = pair.train.batch(torch.arange(60000))
    assert float(inputs.mean(dtype=torch.float64)) == pytest.approx(
        NORMALISATIONS[name].mean[0], abs=5e-5
    )
    assert float(inputs.std()) == pytest.approx(NORMALISATIONS[name].std[0], abs=5e-5)
    assert targets.bincount().min() > 5400


def test_the_real_cifar_pictures_have_about_the_mean_we_state() -> None:
    path = DATA / "cifar10" / "cifar10_test.npz"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    residual = read_npz(path, ["residual"])["residual"][:2000]
    planes = np.cumsum(np.cumsum(residual, 3, dtype=np.uint8), 2, dtype=np.uint8)
    planes[:, [0, 2]] += planes[:, 1:2]
    assert planes.mean((0, 2, 3)) / 255 == pytest.approx(NORMALISATIONS["cifar10"].mean, abs=0.02)
