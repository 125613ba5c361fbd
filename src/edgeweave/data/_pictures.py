"""Pictures in folders that are called by their class. Needs Pillow, and trusts no file.

    FOLDER/train/cat/1.png  FOLDER/test/cat/9.png      or      FOLDER/cat/1.png, to be split

Classes are numbered in the order of their names, or are the names where all are whole numbers. So
devices with folders of their own agree on them if all have the same folders; one may be empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeweave.core.errors import ConfigError
from edgeweave.data._formats import UNREADABLE, Bytes, check_size

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Pictures", "class_numbers", "class_paths", "is_numbered", "read_pictures"]

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP", ".ppm": "PPM"}
_FORMATS |= {".pgm": "PPM"}
_GREY_MODES = ("1", "L", "LA")
_COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")

Pictures = Mapping[str, Sequence[Path]]
"""Files by class."""


def class_paths(folder: Path) -> Pictures:
    """The pictures of a folder of classes. What begins with a dot is left out."""
    found = {}
    for each in sorted(folder.iterdir()):
        if each.name.startswith("."):
            continue
        if not each.is_dir():
            raise ConfigError(
                f"{each}: beside folders of classes there is nothing else ({each.name} is a "
                "file). Move it away."
            )
        paths = sorted(path for path in each.iterdir() if not path.name.startswith("."))
        for path in paths:
            if path.suffix.lower() not in _FORMATS:
                raise ConfigError(
                    f"{path}: a picture is one of {', '.join(_FORMATS)} (got "
                    f"{path.suffix or 'no ending'}). Convert it, or move it away."
                )
        found[each.name] = paths
    if not any(found.values()):
        raise ConfigError(
            f"{folder}: a folder of pictures has a folder for each class (it has "
            f"{len(found)} folders with no picture in them). Check the path."
        )
    return found


def class_numbers(names: Sequence[str]) -> dict[str, int]:
    """The number of each class.

    >>> class_numbers(["dog", "cat"])
    {'cat': 0, 'dog': 1}
    >>> class_numbers(["7", "10"])
    {'7': 7, '10': 10}
    """
    if is_numbered(names):
        return {name: int(name) for name in names}
    return {name: number for number, name in enumerate(sorted(names))}


def is_numbered(names: Iterable[str]) -> bool:
    """Whether folders are called by the numbers of their classes."""
    return all(name.isascii() and name.isdigit() for name in names)


def read_pictures(paths: Sequence[Path]) -> Bytes:
    """Pictures of one size as (n, channels, height, width): one channel if all are grey, or three.

    ``ConfigError`` if one differs in size, cannot be read, or is much larger than memory likes.
    """
    headers = [_header(path) for path in paths]
    sizes = {size for size, _ in headers}
    if len(sizes) != 1:
        odd = next(k for k, (size, _) in enumerate(headers) if size != headers[0][0])
        raise ConfigError(
            f"{paths[odd]}: pictures of one data set have one size (it has "
            f"{_across(headers[odd][0])}, {paths[0].name} has {_across(headers[0][0])}). "
            "Scale them to one size first."
        )
    mode = "L" if all(grey for _, grey in headers) else "RGB"
    (width, height), n_channels = headers[0][0], len(mode)
    check_size(paths[0].parent.parent, len(paths) * n_channels * width * height)
    whole = np.empty((len(paths), n_channels, height, width), np.uint8)
    for number, path in enumerate(paths):
        whole[number] = _pixels(path, mode).reshape(height, width, n_channels).transpose(2, 0, 1)
    return whole


def _header(path: Path) -> tuple[tuple[int, int], bool]:
    """Width and height, and whether it is grey; reads no pixels."""
    image = _open(path)
    with image:
        if image.mode not in (*_GREY_MODES, *_COLOUR_MODES):
            raise ConfigError(
                f"{path}: a picture has 8 bits a channel (it is of Pillow's mode {image.mode}). "
                "Convert it."
            )
        return image.size, image.mode in _GREY_MODES


def _pixels(path: Path, mode: str) -> Bytes:
    image = _open(path)
    with image:
        try:
            pixels: Bytes = np.asarray(image.convert(mode), np.uint8)
        except (*UNREADABLE, SyntaxError) as error:
            raise _unreadable(path, error) from error
    return pixels


def _open(path: Path) -> Image.Image:
    try:
        from PIL import Image  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError(
            "pictures are read by Pillow (it is not installed). Install it: "
            "pip install 'edgeweave[images]'"
        ) from error
    try:
        return Image.open(path, formats=[_FORMATS[path.suffix.lower()]])
    except (*UNREADABLE, SyntaxError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: BaseException) -> ConfigError:
    return ConfigError(
        f"{path}: a picture can be read to its end ({type(error).__name__}: {error}). "
        "Save it again."
    )


def _across(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]} pixels"
