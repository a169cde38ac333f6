"""Trained heads: how the run's head is read, and which of its layers a run looks at."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from pipeline.bodies.classifier import over_array
from pipeline.network.head import Embedder, Head, HeadLayer, head_of
from storage.manifest import recorded_manifest
from storage.root import Root
from storage.runs import RunRecord
from storage.scan import file_metadata
from storage.tensors import read_tensors


@dataclass(frozen=True)
class StoredHead:
    """The tensors of a head, and the classes that its fc8 tells apart, after the background.

    Arrays, since Ray shares their memory between the processes of a node.
    """

    tensors: dict[str, NDArray[np.float32]]
    class_names: tuple[str, ...]

    def head(self) -> Head:
        """The head, over the same memory."""
        return head_of({name: over_array(values) for name, values in self.tensors.items()})

    def embedder(self, layer: HeadLayer, device: str) -> Embedder:
        """Vectors to a layer's outputs."""
        return Embedder(self.head(), layer, device=device)


def read_head(root: Root, record: RunRecord) -> StoredHead:
    """The head of a run. StorageError, naming the verb, if it has none."""
    return StoredHead(read_tensors(root, _key(root, record)), head_classes(root, record))


def head_classes(root: Root, record: RunRecord) -> tuple[str, ...]:
    """The classes that the run's head tells apart. StorageError as ``read_head``."""
    return tuple(json.loads(file_metadata(root, _key(root, record))["classes"]))


def network_layer(layer: str) -> HeadLayer:
    """What ``svm.layer`` is called in the network: fc7 of ftfc7."""
    return cast(HeadLayer, layer.removeprefix("ft"))


def _key(root: Root, record: RunRecord) -> str:
    (key,) = recorded_manifest(root, record, "head").keys
    return key
