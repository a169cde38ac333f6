"""How products are made: each block by one thread, so that no number hangs on how many threads there are.

Libraries share a product out to threads in ways of their own. Where they cut it across the sum (MKL does with 64 x
1,600 by 1,600 x 32 where a processor has AVX-512, oneDNN with the 1 x 1 convolutions of most bodies everywhere), one
thread and two give other last bits; and where they cut it elsewhere, edges can be summed by other code. So here a block
of one shape is made by one thread, and where more are wanted they share out blocks. ``torch.get_num_threads()`` of
whoever calls says how many: it decides how long something takes, and nothing else.

Whatever multiplies matrices in this package does so through ``product``, ``Linear`` and ``share_out``, or inside
``one_thread``.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from threadpoolctl import ThreadpoolController
from torch import nn

Part = TypeVar("Part")

COLUMNS = 512
"""Of a block of a product: wide enough that each thread is as fast as the library would be alone."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, what the calling thread computes it computes alone: PyTorch, NumPy and SciPy.

    PyTorch's other threads are left as they are. NumPy's and SciPy's BLAS know one number for the process: it is 1
    until nobody is inside any more.
    """
    _BLAS.enter()
    try:
        with one_torch_thread():
            yield
    finally:
        _BLAS.leave()


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """The same for what PyTorch alone computes, at next to no cost."""
    before = torch.get_num_threads()
    try:
        if before != 1:
            torch.set_num_threads(1)  # of the calling thread: MKL, OpenMP and oneDNN
        yield
    finally:
        if before != 1:
            torch.set_num_threads(before)


def share_out(work: Callable[[Part], None], parts: Sequence[Part]) -> None:
    """Call ``work``, which computes with PyTorch, with each part, each in one thread; as many threads at once as the
    caller has in PyTorch.

    The parts are to be the same whatever that number is. Raises what ``work`` raises.
    """
    threads = min(torch.get_num_threads(), len(parts))
    inference = torch.is_inference_mode_enabled()  # which, as the number of threads, is the calling thread's own

    def alone(part: Part) -> None:
        with torch.inference_mode(inference), torch.no_grad(), one_torch_thread():
            work(part)

    with one_torch_thread():
        if threads < 2:
            for part in parts:
                work(part)
        else:
            list(_workers(threads, os.getpid()).map(alone, parts))


def product(left: torch.Tensor, right: torch.Tensor, add: torch.Tensor | None = None) -> torch.Tensor:
    """``left @ right + add`` of (n, k) and (k, m), in blocks of ``COLUMNS`` columns, without gradients.

    ``add``: (m,), to every row. Each row's numbers hang on its place and on n, so callers take rows in blocks of one
    height. On a GPU: what PyTorch makes of it.
    """
    if left.device.type != "cpu":
        return left @ right if add is None else torch.addmm(add, left, right)
    made = torch.empty((len(left), right.shape[1]), dtype=left.dtype)

    def make(first: int) -> None:
        columns = slice(first, first + COLUMNS)
        if add is None:
            torch.mm(left, right[:, columns], out=made[:, columns])
        else:
            torch.addmm(add[columns], left, right[:, columns], out=made[:, columns])

    share_out(make, range(0, right.shape[1], COLUMNS))
    return made


class Linear(nn.Linear):
    """``nn.Linear`` whose products, and those of its gradients, are made as here."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Outputs (B, out) of values (B, in)."""
        if values.device.type != "cpu":
            return super().forward(values)
        if not torch.is_grad_enabled():
            return product(values, self.weight.T, self.bias)
        made: torch.Tensor = _LinearWithGradients.apply(values, self.weight, self.bias)
        return made


class _LinearWithGradients(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        context.save_for_backward(values, weight)
        return product(values, weight.T, bias)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        values, weight = context.saved_tensors
        of_values, of_weight, of_bias = context.needs_input_grad
        return (
            product(gradient, weight) if of_values else None,
            product(gradient.T, values) if of_weight else None,
            gradient.sum(dim=0) if of_bias else None,  # each column is summed by one thread
        )


class _Blas:
    """The threads of NumPy's and SciPy's BLAS, which are the whole process's: one as long as somebody wants it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before: list[tuple[Any, int]] = []

    def enter(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = [(library, library.num_threads) for library in _libraries("scipy.linalg" in sys.modules)]
                for library, _ in self._before:
                    _set_threads(library, 1)
            self._inside += 1

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                for library, threads in self._before:
                    _set_threads(library, threads)


_BLAS = _Blas()


@functools.cache
def _libraries(with_scipy: bool) -> list[Any]:
    """The BLAS libraries that are loaded; looked for again when SciPy has brought its own."""
    found: list[Any] = ThreadpoolController().select(user_api="blas").lib_controllers
    return found


def _set_threads(library: Any, threads: int) -> None:
    """From version 3.7 threadpoolctl lets but one thread of a process set OpenBLAS's; here any, as they are counted."""
    getattr(library, "_real_set_num_threads", library.set_num_threads)(threads)


@functools.cache
def _workers(threads: int, process: int) -> ThreadPoolExecutor:
    """Kept, since starting threads costs as much as a small block; a forked process needs its own."""
    return ThreadPoolExecutor(threads, thread_name_prefix="products")
