"""OpenCV's selective search, in a process of its own.

OpenCV ranks with C's ``rand()``, one stream per process, and seeding it just before the call is not enough: Ray's
threads draw from the same stream now and then, which changes boxes and order. A child process in which nothing else
runs gives the same boxes on any worker. It also keeps a crash of OpenCV away from the worker: the image at fault gets
an error, the next one a new child.

Run as a script, this file is the child: requests on standard input, answers on standard output.
"""

from __future__ import annotations

import atexit
import struct
import subprocess
import sys
import threading
from typing import IO

import numpy as np
from numpy.typing import NDArray

_REQUEST = struct.Struct("<iiiidI")  # height, width, base_k, inc_k, sigma, seed; then the pixels, BGR
_ANSWER = struct.Struct("<i")  # number of rectangles, each four int32; or minus the length of an error message


class SearchCrashed(RuntimeError):
    """OpenCV refused the image, or died on it."""


class OpenCVSearch:
    """A child process that searches one image at a time; started when first needed, replaced if it dies."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def __call__(self, image: NDArray[np.uint8], base_k: int, inc_k: int, sigma: float, seed: int) -> NDArray[np.int32]:
        """Ranked rectangles x, y, width, height, int32 (N, 4), of an RGB image. SearchCrashed if there are none."""
        request = _REQUEST.pack(*image.shape[:2], base_k, inc_k, sigma, seed & 0xFFFFFFFF)
        with self._lock:
            child = self._running()
            assert child.stdin is not None
            assert child.stdout is not None
            try:
                child.stdin.write(request)
                child.stdin.write(np.ascontiguousarray(image[:, :, ::-1]).data)
                child.stdin.flush()
                (count,) = _ANSWER.unpack(_read(child.stdout, _ANSWER.size))
                answer = _read(child.stdout, 16 * count if count >= 0 else -count)
            except (BrokenPipeError, EOFError) as error:
                self._child = None
                raise SearchCrashed(f"OpenCV's selective search died (exit code {child.wait()})") from error
            except BaseException:  # interrupted: the answer must not become the next image's
                self._child = None
                child.kill()
                child.wait()
                raise
        if count < 0:
            raise SearchCrashed(f"OpenCV's selective search failed: {answer.decode()}")
        return np.frombuffer(answer, np.int32).reshape(-1, 4)

    def close(self) -> None:
        """End the child."""
        if self._child is not None and self._child.stdin is not None:
            self._child.stdin.close()
            self._child.wait()
            self._child = None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            # its standard input ends when this process does, however that ends, and so does the child
            self._child = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            atexit.register(self.close)
        return self._child


def _read(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise EOFError
    return data


def _serve() -> None:
    """Answer requests until standard input ends."""
    import ctypes

    import cv2

    libc = ctypes.CDLL(None)
    cv2.setNumThreads(1)
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while header := source.read(_REQUEST.size):
        height, width, base_k, inc_k, sigma, seed = _REQUEST.unpack(header)
        image = np.frombuffer(_read(source, 3 * height * width), np.uint8).reshape(height, width, 3)
        search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
        try:
            search.setBaseImage(image)
            search.switchToSelectiveSearchFast(base_k, inc_k, sigma)
            libc.srand(ctypes.c_uint(seed))
            rectangles = np.ascontiguousarray(search.process(), np.int32).reshape(-1, 4)
        except cv2.error as error:
            message = " ".join(str(error).split()).encode()
            sink.write(_ANSWER.pack(-len(message)) + message)
        else:
            sink.write(_ANSWER.pack(len(rectangles)) + rectangles.tobytes())
        sink.flush()


if __name__ == "__main__":
    _serve()
