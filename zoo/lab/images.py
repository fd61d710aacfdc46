"""Pictures: MNIST, the Olivetti faces, and binary versions of scikit-learn's digits."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from sklearn import datasets

from zoo.lab.files import File, check
from zoo.lab.partitions import Fixed, Grouped, Thirds
from zoo.lab.raw import Arrays
from zoo.lab.sets import DataSet, Files, Inside

MNIST_SOURCE = "LeCun, Cortes, Burges: MNIST handwritten digits"
# Official file -> SHA256 of its unpacked content. The MD5s published for the same contents (6bbc9ace..., a25bea73...,
# 2646ac64..., 27ae3e4e...) were compared with the files that these were computed from; a test does it again.
IDX = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
KEYS = ("x_train", "y_train", "x_test", "y_test")  # of mnist.npz, in the same order
MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/{name}.gz"  # not tried from here; the checksums decide
FACES = "a3f75007cc103363b61a63e06bec8ea4846407682ef6e7c9ae1eb9c1bd0e8a00"  # SHA256 of the bytes of the images
ALTERED = "these would not be the published images"


def images() -> list[DataSet]:
    """MNIST and the faces, which are found as files; binary digits, which come with scikit-learn."""
    return [_mnist(), _mnist_crop(), _olivetti(), *_digits()]


def idx(values: np.ndarray) -> bytes:
    """Bytes (any shape) as an IDX file: magic number, sizes, values."""
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


def from_idx(content: bytes) -> np.ndarray:
    """The values of an IDX file of bytes.

    Raises:
        ValueError: it is no such file.
    """
    zero, kind, dims = struct.unpack_from(">HBB", content.ljust(4))
    if (zero, kind) != (0, 8):
        raise ValueError("this is no IDX file of bytes")
    shape = struct.unpack_from(f">{dims}I", content.ljust(4 + 4 * dims), 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dims).reshape(shape)


def _mnist() -> DataSet:
    return _of_mnist("mnist", 70000, 784, _digits_of)


def _mnist_crop() -> DataSet:
    caveat = (
        "rows and columns 9 to 18 of the first 12,000 training digits, as recalled from Arnold and Ollivier 2012; "
        "thirds by a permutation whose seed is the number of the split"
    )
    return _of_mnist("mnist_crop", 12000, 100, _cropped, caveat=caveat)


def _of_mnist(
    name: str, rows: int, columns: int, make: Callable[[Sequence[np.ndarray]], Arrays], *, caveat: str = ""
) -> DataSet:
    """A set made of MNIST's four arrays, from either form of its files."""
    packed = Files((File(("mnist.npz", "mnist/mnist.npz")),), lambda contents: make(_mnist_npz(contents)), MNIST_SOURCE)
    official = tuple(File((f"mnist/{name}",), sha, MIRROR.format(name=name), ALTERED) for name, sha in IDX.items())
    unpacked = Files(official, lambda contents: make([from_idx(content) for content in contents]), MNIST_SOURCE)
    licence = "usually given as CC BY-SA 3.0"
    return DataSet(name, rows, columns, "classes", licence, MNIST_SOURCE, (packed, unpacked), caveat=caveat)


def _mnist_npz(contents: Sequence[bytes]) -> list[np.ndarray]:
    arrays = _npz(contents[0])
    values = [arrays[key] for key in KEYS]
    for key, array, sha in zip(KEYS, values, IDX.values(), strict=True):
        check(idx(array), sha, what=f"mnist.npz, {key} as IDX file", harm=ALTERED)
    return values


def _cropped(values: Sequence[np.ndarray]) -> Arrays:
    x, y = values[0][:12000, 9:19, 9:19], values[1][:12000]
    units, classes = {"x": "pixel intensity, 0 to 1", "y": "class index"}, tuple("0123456789")
    parts = Thirds(12000)
    return Arrays({"x": x.reshape(-1, 100), "y": y}, parts, units, divisor=255.0, columns=_pixels(100), classes=classes)


def _digits_of(values: Sequence[np.ndarray]) -> Arrays:
    x_train, y_train, x_test, y_test = values
    return Arrays(
        {"x": np.concatenate([x_train, x_test]).reshape(-1, 784), "y": np.concatenate([y_train, y_test])},
        Fixed({"train": len(x_train), "test": len(x_test)}),
        {"x": "pixel intensity, 0 to 1", "y": "class index"},
        divisor=255.0,
        columns=_pixels(784),
        classes=tuple("0123456789"),
    )


def _olivetti() -> DataSet:
    source = "AT&T Laboratories Cambridge: Olivetti faces"
    form = Files((File(("faces/olivetti.npz", "olivetti.npz")),), _faces, source)
    caveat = (
        "people are split, so that no face of the test part was trained on; target=person gives classes, and then the "
        "images are split. People, not expressions: no stand-in for the Toronto Face Database's numbers"
    )
    return DataSet("olivetti", 400, 4096, "density", "none known; give credit", source, (form,), caveat=caveat)


def _faces(contents: Sequence[bytes]) -> Arrays:
    faces = _npz(contents[0])["images"]
    check(faces.tobytes(), FACES, what="olivetti.npz, images", harm=ALTERED)
    x, person = faces.reshape(400, -1), np.repeat(np.arange(40), 10)
    units = {"x": "pixel intensity, 0 to 1"}
    people = Arrays(
        {"x": x, "y": person},
        Grouped.single(400),
        {**units, "y": "class index"},
        divisor=255.0,
        columns=_pixels(4096),
        classes=tuple(f"person {k}" for k in range(1, 41)),
    )
    labelled = {"person": people}
    return Arrays({"x": x}, Grouped(person), units, divisor=255.0, columns=_pixels(4096), labelled=labelled)


def _npz(content: bytes) -> Mapping[str, np.ndarray]:
    with np.load(io.BytesIO(content)) as archive:  # refuses pickled objects
        return {key: archive[key] for key in archive.files}


def _digits() -> list[DataSet]:
    return [
        _binary("digits_binary", 64, "pixel > 8", binary_digits),
        _binary("digits_4x4", 16, "means of 2 x 2 pixels > 8", pooled_digits),
    ]


def _binary(name: str, columns: int, rule: str, make: Callable[[], np.ndarray]) -> DataSet:
    source = "UCI, optical recognition of handwritten digits (8 x 8 pixels, test part)"
    form = Inside(lambda: _labelled(make(), rule), "embedded", f"{source}; embedded in scikit-learn")
    licence = "terms of the UCI repository"
    return DataSet(name, 1797, columns, "classes", licence, source, (form,), caveat=f"binary: {rule}")


def binary_digits() -> np.ndarray:
    """scikit-learn's digits, pixel > 8 of 16: (1797, 64), 0 or 1."""
    return (datasets.load_digits().data > 8).astype(np.uint8)


def pooled_digits() -> np.ndarray:
    """scikit-learn's digits in 4 x 4 pixels, mean of 2 x 2 pixels > 8 of 16: (1797, 16), 0 or 1; 235 distinct rows."""
    pooled = datasets.load_digits().images.reshape(-1, 4, 2, 4, 2).mean((2, 4))
    return (pooled > 8).reshape(-1, 16).astype(np.uint8)


def _labelled(x: np.ndarray, rule: str) -> Arrays:
    return Arrays(
        {"x": x, "y": datasets.load_digits().target},
        Grouped.single(len(x)),
        {"x": "0 or 1", "y": "class index"},
        columns=_pixels(x.shape[1]),
        classes=tuple("0123456789"),
        note=rule,
    )


def _pixels(count: int) -> tuple[str, ...]:
    return tuple(f"pixel_{k}" for k in range(count))
