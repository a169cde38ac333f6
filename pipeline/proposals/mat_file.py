"""The cell arrays ``images`` and ``boxes`` of a .mat file, read in a process of its own: damaged bytes make
``scipy.io.loadmat`` crash, not only raise.

Run as a script, this file is the child: the .mat file on standard input, the arrays on standard output.
"""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
from numpy.typing import NDArray


class MatError(ValueError):
    """The file holds no such cell arrays."""


def read_cells(data: bytes) -> tuple[list[str], list[NDArray[np.float32]]]:
    """Names, and for each the numbers (N, 4). Raises MatError."""
    child = subprocess.run([sys.executable, __file__], input=data, capture_output=True, check=False)
    if child.returncode == _REFUSED:
        raise MatError(child.stderr.decode().strip())
    if child.returncode:
        raise MatError(f"it is no .mat file that can be read: its reader died (exit code {child.returncode})")
    with np.load(io.BytesIO(child.stdout), allow_pickle=False) as arrays:
        names, counts, numbers = arrays["names"], arrays["counts"], arrays["numbers"]
    return names.tolist(), np.split(numbers, np.cumsum(counts)[:-1])


_REFUSED = 3


def _cells(data: bytes) -> tuple[list[str], list[NDArray[np.float32]]]:
    import zlib

    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    of_damage = (  # what it makes of damaged bytes; of any other error its reader dies
        *(OSError, ValueError, TypeError, LookupError, ArithmeticError, NameError, MemoryError),
        *(zlib.error, MatReadError),
    )
    try:
        cells = loadmat(io.BytesIO(data), variable_names=("images", "boxes"))
    except NotImplementedError:
        raise MatError("it is of MATLAB 7.3; save it with -v7, or as Parquet") from None
    except of_damage as error:
        raise MatError(f"it is no .mat file that can be read: {error}") from error
    for name in ("images", "boxes"):
        if name not in cells:
            raise MatError(f"it has no cell array {name!r}; images and boxes are needed")
    names, values = np.ravel(cells["images"]), np.ravel(cells["boxes"])
    if names.dtype != object or values.dtype != object or len(names) != len(values):
        raise MatError(f"images ({len(names)}) and boxes ({len(values)}) must be cell arrays of one length")
    read: dict[str, NDArray[np.float32]] = {}
    for name, numbers in zip(names, values, strict=True):
        if not (isinstance(name, np.ndarray) and name.size == 1 and name.dtype.kind == "U"):
            raise MatError("images must hold the names of images")
        image_id = str(name.item())
        if image_id in read:
            raise MatError(f"image {image_id!r} stands in it twice")
        if not isinstance(numbers, np.ndarray) or numbers.dtype.kind not in "iuf":
            raise MatError(f"image {image_id!r}: its boxes are no numbers")
        if numbers.size and (numbers.ndim != 2 or numbers.shape[1] != 4):
            raise MatError(f"image {image_id!r}: its boxes have the shape {numbers.shape}, not N x 4")
        read[image_id] = numbers.astype(np.float32).reshape(-1, 4)
    return list(read), list(read.values())


def _serve() -> None:
    try:
        names, values = _cells(sys.stdin.buffer.read())
    except MatError as error:
        sys.stderr.buffer.write(" ".join(str(error).split()).encode(errors="backslashreplace"))
        raise SystemExit(_REFUSED) from None
    answer = io.BytesIO()
    numbers = np.concatenate([np.empty((0, 4), np.float32), *values])
    np.savez(answer, names=np.array(names, str), counts=np.array([len(v) for v in values], int), numbers=numbers)
    sys.stdout.buffer.write(answer.getbuffer())


if __name__ == "__main__":
    _serve()
