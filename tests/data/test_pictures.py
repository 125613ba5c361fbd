"""Pictures in folders of classes: what becomes of them, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgeweave.core.errors import ConfigError
from edgeweave.data import load_source


def picture(path: Path, value: int, *, size: tuple[int, int] = (6, 4), mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 0, 255)).save(path)


def labelled(folder: Path) -> list[tuple[float, int]]:
    """The first pixel and the class of every sample to train on."""
    data = load_source("images", path=folder).train
    inputs, targets = data.batch(torch.arange(len(data)))
    return [(float(x[0, 0, 0] * 255), int(y)) for x, y in zip(inputs, targets, strict=True)]


def test_folders_are_classes_in_the_order_of_their_names(tmp_path: Path) -> None:
    for part in ("train", "test"):
        picture(tmp_path / part / "dog" / "1.png", 30)
        picture(tmp_path / part / "cat" / "1.png", 10)
        picture(tmp_path / part / "cat" / "2.png", 20)
    (tmp_path / "train" / ".hidden").write_text("nothing")
    assert labelled(tmp_path) == [(10, 0), (20, 0), (30, 1)]
    told = load_source("images", path=tmp_path).description
    assert told == "images: 3 samples to train, 3 to test, of 1x4x6, 2 classes"


def test_folders_called_by_numbers_are_those_classes(tmp_path: Path) -> None:
    for part in ("train", "test"):
        picture(tmp_path / part / "10" / "a.png", 10)
        picture(tmp_path / part / "2" / "a.png", 2)
    assert sorted(labelled(tmp_path)) == [(2, 2), (10, 10)]


def test_an_empty_folder_keeps_the_numbers_of_devices_alike(tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / part / "ant").mkdir(parents=True)
        picture(tmp_path / part / "bee" / "a.png", 7)
    assert labelled(tmp_path) == [(7, 1)]


def test_without_parts_a_fifth_of_every_class_is_kept_for_testing(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for number in range(10):
            picture(tmp_path / name / f"{number}.png", number)
    pair = load_source("images", path=tmp_path)
    assert (len(pair.train), len(pair.test)) == (16, 4)
    assert pair.test.batch(torch.arange(4))[1].tolist() == [0, 0, 1, 1]


def test_one_picture_in_colour_gives_all_three_channels(tmp_path: Path) -> None:
    for part in ("train", "test"):
        picture(tmp_path / part / "x" / "grey.png", 9)
        picture(tmp_path / part / "x" / "red.bmp", 200, mode="RGB")
    inputs, _ = load_source("images", path=tmp_path).train.batch(torch.arange(2))
    assert inputs.shape == (2, 3, 4, 6)
    found = [sample[:, 0, 0].mul(255).round().tolist() for sample in inputs]
    assert found == [[9, 9, 9], [200, 0, 255]]


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "ppm", "pgm"])
def test_formats_are_read_as_they_are_written(tmp_path: Path, ending: str) -> None:
    for part in ("train", "test"):
        picture(tmp_path / part / "x" / f"1.{ending}", 80)
    inputs, _ = load_source("images", path=tmp_path).train.batch(torch.arange(1))
    np.testing.assert_allclose(inputs.mul(255), 80, atol=1.0)


def test_pictures_of_two_sizes_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.png", 1)
    picture(tmp_path / "b" / "2.png", 1, size=(5, 5))
    with pytest.raises(ConfigError, match=r"2.png: .*it has 5x5 pixels, 1.png has 6x4 pixels"):
        load_source("images", path=tmp_path)


@pytest.mark.parametrize("name", ["notes.txt", "1"])
def test_what_is_no_picture_is_named(tmp_path: Path, name: str) -> None:
    picture(tmp_path / "a" / "1.png", 1)
    (tmp_path / "a" / name).write_bytes(b"?")
    with pytest.raises(ConfigError, match=r"a picture is one of \.png"):
        load_source("images", path=tmp_path)


@pytest.mark.parametrize("damage", ["cut", "foreign", "empty"])
def test_damaged_pictures_are_refused_with_their_path(tmp_path: Path, damage: str) -> None:
    picture(tmp_path / "a" / "1.png", 1, size=(64, 64))
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)).save(
        tmp_path / "a" / "2.png"
    )
    path = tmp_path / "a" / "2.png"
    data = path.read_bytes()
    path.write_bytes({"cut": data[:900], "foreign": b"BM" + data[2:], "empty": b""}[damage])
    with pytest.raises(ConfigError, match=r"2.png: a picture can be read to its end"):
        load_source("images", path=tmp_path)


def test_pictures_of_sixteen_bits_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.png", 1)
    Image.fromarray(np.zeros((4, 6), np.uint16)).save(tmp_path / "a" / "2.png")
    with pytest.raises(ConfigError, match="a picture has 8 bits a channel"):
        load_source("images", path=tmp_path)


def test_pictures_larger_than_memory_likes_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "a" / "1.png", 1)
    monkeypatch.setattr("edgeweave.data._formats._LARGEST_ARRAY_BYTES", 20)
    with pytest.raises(ConfigError, match="an array has at most 20 B"):
        load_source("images", path=tmp_path)


@pytest.mark.parametrize("what", ["missing", "empty", "flat"])
def test_a_folder_without_classes_is_refused(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "pictures"
    if what != "missing":
        folder.mkdir()
    if what == "flat":
        picture(folder / "1.png", 1)
    with pytest.raises(ConfigError, match="folder"):
        load_source("images", path=folder)


def test_without_pillow_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "a" / "1.png", 1)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ConfigError, match=r"pip install 'edgeweave\[images\]'"):
        load_source("images", path=tmp_path)
