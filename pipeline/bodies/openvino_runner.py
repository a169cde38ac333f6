"""OpenVINO as the engine of a body's network on a CPU.

The network is traced once, and compiled for images of every size: a new size costs a millisecond or two more than the
next image of that size. Each image is computed by one thread, whatever number of them are computed at once, so no map
hangs on the number of threads. Its convolutions are summed in another order than PyTorch's: maps differ by a few
millionths of their norm (``pipeline.bodies.engine_trial.TOLERANCE`` is the bound).
"""

from __future__ import annotations

import queue
import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.bodies.engine import ConversionError, EngineError, Precision

_HINTS: dict[Precision, str] = {"float32": "f32", "bfloat16": "bf16"}
"""Said even for float32: by itself OpenVINO takes bfloat16 on a processor that is good at it. Not float16: that was
slower on every CPU that was measured, and the map of squeezenet1_1 by OpenVINO 2026.4 was rubbish."""

_CAPABILITIES: dict[Precision, str] = {"float32": "FP32", "bfloat16": "BF16"}


class OpenVinoRunner:
    """A network that OpenVINO runs on a CPU; a ``pipeline.bodies.engine.Runner``.

    Parameters
    ----------
    network : ready for inference.
    last : what the network's own output is called.
    taps : other layers, by name, each with the path of the submodule that puts it out.
    side : of a square image that the network takes, in pixels, to trace it with.
    at_once : images that are computed at once, each by one thread.

    Raises
    ------
    ConversionError : OpenVINO cannot take the network.
    EngineError : it is not installed, or it or the processor does not compute with this precision.
    """

    def __init__(
        self,
        network: nn.Module,
        last: str,
        taps: Mapping[str, str],
        side: int,
        precision: Precision = "float32",
        at_once: int = 1,
    ) -> None:
        if precision not in _HINTS:
            raise EngineError(f"OpenVINO runs no body with {precision}; use features.precision: {' or '.join(_HINTS)}")
        self._library = openvino()
        self._core = self._library.Core()
        able = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if _CAPABILITIES[precision] not in able:
            raise EngineError(
                f"OpenVINO does not compute with {precision} on this processor; use features.precision: float32"
            )
        self._options = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "NUM_STREAMS": at_once,  # never more than there are cores
            "INFERENCE_NUM_THREADS": at_once,
            "ENABLE_CPU_PINNING": False,  # every actor of a machine would sit on its first cores
        }
        self._names = (*taps, last)
        self._model = _converted(self._library, _Layers(network, tuple(taps.values())), side)
        self._lock = threading.Lock()
        self._compiled: dict[tuple[str, ...], _Compiled] = {}
        self._of((last,))

    def __call__(self, batch: torch.Tensor, layers: Sequence[str]) -> dict[str, torch.Tensor]:
        """See ``pipeline.bodies.engine.Runner``; channels are last in memory."""
        wanted = tuple(name for name in self._names if name in layers)
        pixels = batch.permute(0, 2, 3, 1).contiguous().numpy()
        values = self._of(wanted)(pixels)
        return {name: torch.from_numpy(one).permute(0, 3, 1, 2) for name, one in zip(wanted, values, strict=True)}

    def _of(self, wanted: tuple[str, ...]) -> _Compiled:
        """What puts out these layers and no others, compiled when it is first asked for."""
        with self._lock:
            if wanted not in self._compiled:
                outputs = [self._model.get_results()[self._names.index(name)] for name in wanted]
                model = self._library.Model(outputs, self._model.get_parameters(), "body").clone()
                model = _channels_last(self._library, model)
                self._compiled[wanted] = _Compiled(self._core.compile_model(model, "CPU", self._options))
            return self._compiled[wanted]


@dataclass
class _Compiled:
    """A compiled model, and what its passes work in; a pass has it to itself."""

    model: Any
    free: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue)

    def __call__(self, pixels: np.ndarray) -> list[np.ndarray]:
        """Its outputs, (B, height, width, channels), of images (B, H, W, 3)."""
        try:
            request = self.free.get_nowait()
        except queue.Empty:
            request = self.model.create_infer_request()
        try:
            request.infer([pixels], share_inputs=True, share_outputs=True)
            # copied: the next pass writes to the same memory
            return [np.array(request.get_output_tensor(i).data) for i in range(len(self.model.outputs))]
        finally:
            self.free.put(request)


class _Layers(nn.Module):
    """A network that also puts out layers before its last, given by the paths of their submodules."""

    def __init__(self, network: nn.Module, paths: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.paths = network, paths

    def forward(self, batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        kept: dict[str, torch.Tensor] = {}

        def keep(path: str, output: torch.Tensor) -> None:
            kept[path] = output

        hooks = [
            self.network.get_submodule(path).register_forward_hook(
                lambda module, inputs, output, path=path: keep(path, output)
            )
            for path in self.paths
        ]
        try:
            conv_map = self.network(batch)
        finally:
            for hook in hooks:
                hook.remove()
        return (*(kept[path] for path in self.paths), conv_map)


def _converted(library: Any, network: nn.Module, side: int) -> Any:
    """The network as OpenVINO's model, for batches and images of every size."""
    try:
        with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a trace cannot follow, which a trial finds, and of its future
            traced = torch.jit.trace(network.eval(), torch.zeros(1, 3, side, side), check_trace=False)
            traced = torch.jit.freeze(traced)
            return library.convert_model(traced, input=[library.PartialShape([-1, 3, -1, -1])])
    except (library.frontend.OpConversionFailure, RuntimeError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConversionError(f"OpenVINO cannot convert the body ({reason}); use features.engine: torch") from error


def _channels_last(library: Any, model: Any) -> Any:
    """The same model, with images and maps as they lie in memory here."""
    from openvino.preprocess import PrePostProcessor

    steps = PrePostProcessor(model)
    for end in (steps.input(), *(steps.output(i) for i in range(len(model.outputs)))):
        end.tensor().set_layout(library.Layout("NHWC"))
        end.model().set_layout(library.Layout("NCHW"))
    return steps.build()


@cache
def openvino() -> Any:
    """The library. EngineError if it is not installed."""
    # Without this, importing it and converting a model are reported to its makers, unless the user has declined.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
        import openvino.frontend
    except ImportError as error:
        raise EngineError(
            "OpenVINO is not installed; pip install 'spp-pipeline[openvino]', or use features.engine: torch"
        ) from error
    return openvino
