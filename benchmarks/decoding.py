"""Decoding of large JPEGs: the package's own way against other libraries, whole and at a part of the size.

    python -m benchmarks.decoding [--pixels N] [--rounds N] [--json]

Ours: ``pipeline.images.decode.decode_image`` (Pillow, checked, EXIF). Peers, those that are installed: OpenCV,
torchvision, PyTurboJPEG, each from bytes to RGB in memory. Whole, and with a short side of at least 480 pixels: Pillow
and PyTurboJPEG decode to a half, a quarter or an eighth, which is another image than the whole one made smaller (the
note says by how many grey levels), so vectors of it would need names of their own. What a decoder makes of a file that
lacks its last tenth is said below: it should refuse it, as ours does.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from PIL import Image

from benchmarks.comparison import Case, report, take_turns
from pipeline.errors import ImageError
from pipeline.images.decode import RGB, decode_image

Decoder = Callable[[bytes], RGB]

SHORT = 480


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns 1 if a whole image differs by more than two grey levels on average."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pixels", type=float, default=12e6, metavar="N")
    parser.add_argument("--rounds", type=int, default=7, metavar="N")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line of standard output")
    options = parser.parse_args(arguments)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    data = photograph(int((options.pixels * 3 / 4) ** 0.5))
    cases, notes = [], []
    for kind, peers, ours in (("whole", whole(), decode_image), (f"short side >= {SHORT}", scaled(), _ours_scaled)):
        images = {name: decode(data) for name, decode in {"ours": ours, **peers}.items()}
        times = take_turns({name: lambda d=d: d(data) for name, d in {"ours": ours, **peers}.items()}, options.rounds)
        for name in peers:
            same = images[name].shape == images["ours"].shape
            off = float(np.abs(images[name].astype(int) - images["ours"]).mean()) if same else float("inf")
            cases.append(
                Case(
                    f"{kind}, {name}",
                    ours=times["ours"].median,
                    peer=times[name].median,
                    equal=off <= 2 if kind == "whole" else None,
                    spread=times["ours"].spread + times[name].spread,
                )
            )
            notes.append(
                f"{kind}, {name}: {off:.2f} grey levels from ours; a truncated file: {_truncated(peers, name)}"
            )
    notes.append(f"the scaled image against the whole one made as small: {_cost_of_scaling(data):.2f} grey levels")
    return report(f"JPEG of {options.pixels / 1e6:g} megapixels, {len(data) / 1e6:.1f} MB", notes, cases, options.json)


def photograph(height: int) -> bytes:
    """A JPEG, 4 to 3, with edges and texture: as hard to decode as a photograph."""
    random, width = np.random.default_rng(0), height * 4 // 3
    coarse = random.integers(0, 256, (height // 60 + 2, width // 60 + 2, 3), dtype=np.uint8)
    picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    picture += random.normal(0, 6, picture.shape).astype(np.int16)
    stream = io.BytesIO()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def whole() -> dict[str, Decoder]:
    """Other ways to decode a whole image."""
    found: dict[str, Decoder] = {"opencv": _opencv}
    try:
        from torchvision.io import ImageReadMode, decode_jpeg

        def torchvision(data: bytes) -> RGB:
            pixels = torch.from_numpy(np.frombuffer(data, np.uint8).copy())
            return decode_jpeg(pixels, ImageReadMode.RGB).permute(1, 2, 0).contiguous().numpy()

        torchvision(photograph(60))
        found["torchvision"] = torchvision
    except (ImportError, RuntimeError) as error:
        print(f"torchvision is left out: {error}".splitlines()[0], file=sys.stderr)
    return found | _turbo((1, 1))


def scaled() -> dict[str, Decoder]:
    """Other ways to decode at a part of the size, here a quarter."""
    found: dict[str, Decoder] = {"opencv": lambda data: _opencv(data, cv2.IMREAD_REDUCED_COLOR_4)}
    return found | _turbo((1, 4))


def _turbo(factor: tuple[int, int]) -> dict[str, Decoder]:
    try:
        from turbojpeg import TJPF_RGB, TurboJPEG

        library = TurboJPEG()
    except (ImportError, RuntimeError, OSError) as error:
        print(f"PyTurboJPEG is left out: {error}".splitlines()[0], file=sys.stderr)
        return {}
    return {"turbojpeg": lambda data: library.decode(data, pixel_format=TJPF_RGB, scaling_factor=factor)}


def _opencv(data: bytes, how: int = cv2.IMREAD_COLOR) -> RGB:
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), how)
    if decoded is None:
        raise ValueError("OpenCV reads nothing")
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), np.uint8)


def _ours_scaled(data: bytes) -> RGB:
    return decode_image(data, least=SHORT)


def _truncated(decoders: dict[str, Decoder], name: str) -> str:
    data = photograph(480)
    try:
        decoders[name](data[: len(data) * 9 // 10])
    except (ImageError, RuntimeError, ValueError, OSError, cv2.error) as error:
        return f"refused ({type(error).__name__})"
    return "READ"


def _cost_of_scaling(data: bytes) -> float:
    small, large = _ours_scaled(data), decode_image(data)
    same = cv2.resize(large, small.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    return float(np.abs(same.astype(int) - small).mean())


if __name__ == "__main__":
    sys.exit(main())
