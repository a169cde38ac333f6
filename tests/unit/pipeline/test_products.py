"""The same numbers by one thread and by several, in this process and on every kind of processor that it can play."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits
from torch import nn

from pipeline.products import COLUMNS, Linear, one_thread, product, share_out
from tests import REPOSITORY
from tests.sensitive_numbers import EXACT, PIECES, Numbers, of_bodies, of_engines, of_proposals, of_svms, tolerance

AS_IT_IS = "as it is"

KINDS = {
    "default": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "OPENBLAS_CORETYPE": "Nehalem",
        "NUMBA_CPU_NAME": "nehalem",
        "NUMBA_CPU_FEATURES": "",
    },
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": "+avx2,+fma",
    },
    AS_IT_IS: {},
}
"""Kinds of processor, each an older one that a newer one can play, by what libraries are told of it."""


@pytest.fixture
def threads():
    """Sets PyTorch's and BLAS's threads, for the time of the test."""
    before = torch.get_num_threads()
    with threadpool_limits():  # which restores them

        def set_(count: int) -> None:
            torch.set_num_threads(count)
            threadpool_limits(count)

        yield set_
    torch.set_num_threads(before)


def blas_threads() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


SLOW = (of_proposals, of_bodies, of_engines, of_svms)
"""Selective search is compiled first, which takes longer than all others together."""


@pytest.mark.parametrize(
    "piece",
    [pytest.param(piece, marks=pytest.mark.slow) if piece in SLOW else piece for piece in PIECES],
    ids=lambda piece: piece.__name__,
)
def test_the_number_of_threads_changes_no_number(piece, threads):
    found = []
    for count in (1, 2, 4):
        threads(count)
        found.append(piece())
    for name, values in found[0].items():
        for count, others in zip((2, 4), found[1:], strict=True):
            np.testing.assert_array_equal(others[name], values, err_msg=f"{name}, {count} threads")


def test_the_last_few_windows_that_are_warped_are_as_if_they_were_many():
    found = of_bodies()
    np.testing.assert_array_equal(found["fewer warped"], found["warped"][:1])


@pytest.mark.slow
def test_kinds_of_processor_agree_and_threads_change_nothing_on_any(tmp_path):
    """What OMP_NUM_THREADS says, as Ray sets it for its workers, and what a user has in his shell."""
    found: dict[str, list[Numbers]] = {}
    for kind in kinds_of_this_processor():
        counts = (1, 2, 4) if kind == AS_IT_IS else (1, 4)
        found[kind] = [numbers_of(tmp_path / f"{kind}-{count}.npz", kind, count) for count in counts]
    (first, *_), *others = found.values()
    for kind, (one, *more) in found.items():
        np.testing.assert_array_equal(one["gram in another order"], one["gram"], err_msg=kind)
        for again in more:
            assert {name for name, values in one.items() if not np.array_equal(values, again[name])} == set(), kind
    for kind, (one, *_) in zip(list(found)[1:], others, strict=True):
        for name, values in one.items():
            if name in EXACT:
                np.testing.assert_array_equal(values, first[name], err_msg=f"{kind}: {name}")
            else:
                largest = float(np.abs(first[name]).max())
                atol = tolerance(name, values) * largest
                np.testing.assert_allclose(values, first[name], rtol=0, atol=atol, err_msg=f"{kind}: {name}")


def kinds_of_this_processor() -> list[str]:
    """Those that it is, or can play: on other than x86 it is only what it is."""
    order = ["DEFAULT", "AVX2", "AVX512"]
    own = torch.backends.cpu.get_cpu_capability()
    return [*list(KINDS)[: order.index(own)], AS_IT_IS] if own in order else [AS_IT_IS]


def numbers_of(path: Path, kind: str, threads: int) -> Numbers:
    """The numbers of a process of this kind with so many threads."""
    environment = {**os.environ, **KINDS[kind], "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "tests.sensitive_numbers", str(path)]
    subprocess.run(command, env=environment, cwd=REPOSITORY, check=True, timeout=500)
    with np.load(path) as stored:
        return dict(stored)


def test_inside_one_thread_libraries_have_one_and_outside_what_they_had(threads):
    threads(3)
    with one_thread():
        assert torch.get_num_threads() == 1
        assert blas_threads() == {1}
        with one_thread():
            pass
        assert blas_threads() == {1}
    assert torch.get_num_threads() == 3
    assert max(blas_threads()) > 1 or os.cpu_count() == 1


def test_one_who_leaves_takes_nothing_from_those_who_are_still_inside(threads):
    threads(2)
    entered, leave = threading.Event(), threading.Event()
    seen = []

    def other() -> None:
        with one_thread():
            entered.set()
            assert leave.wait(60)
            seen.append((torch.get_num_threads(), blas_threads()))

    thread = threading.Thread(target=other)
    thread.start()
    assert entered.wait(60)
    with one_thread():
        pass
    assert torch.get_num_threads() == 2
    leave.set()
    thread.join()
    assert seen == [(1, {1})]


def test_it_is_one_also_where_another_thread_has_taken_hold_of_the_number(threads):
    """As scikit-learn does: threadpoolctl then lets no other thread set OpenBLAS's."""
    threads(2)
    held, done, seen = threading.Event(), threading.Event(), []

    def holds() -> None:
        with threadpool_limits(2):
            held.set()
            assert done.wait(60)

    thread = threading.Thread(target=holds)
    thread.start()
    assert held.wait(60)
    with one_thread():
        seen.append(blas_threads())
    seen.append(blas_threads())
    done.set()
    thread.join()
    assert seen == [{1}, {2}]


@pytest.mark.parametrize("count", [1, 3])
def test_parts_are_shared_out_each_to_one_thread(threads, count):
    threads(count)
    seen, meeting = [], threading.Barrier(count, timeout=60)

    def work(part: int) -> None:
        meeting.wait()  # so many work at once
        seen.append((part, torch.get_num_threads(), torch.is_inference_mode_enabled()))

    with torch.inference_mode():
        share_out(work, range(6))
    assert sorted(seen) == [(part, 1, True) for part in range(6)]
    assert torch.get_num_threads() == count


def test_what_a_part_raises_is_raised(threads):
    threads(2)

    def work(part: int) -> None:
        raise ValueError(f"part {part}")

    with pytest.raises(ValueError, match="part 0"):
        share_out(work, [0])
    with pytest.raises(ValueError, match="part"):
        share_out(work, range(3))


@pytest.mark.parametrize("columns", [1, COLUMNS - 1, COLUMNS, 2 * COLUMNS + 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_product_is_the_librarys(columns, dtype):
    left, right, add = (torch.randn(shape, dtype=dtype) for shape in ((9, 40), (40, columns), (columns,)))
    torch.testing.assert_close(product(left, right), left @ right)
    torch.testing.assert_close(product(left, right, add), left @ right + add)
    torch.testing.assert_close(product(left.T, left), left.T @ left)


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_has_the_outputs_and_gradients_of_pytorchs(bias):
    ours, theirs = Linear(30, COLUMNS + 5, bias=bias), nn.Linear(30, COLUMNS + 5, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    values = torch.randn(8, 30)
    found = []
    for layer in (ours, theirs):
        given = values.clone().requires_grad_(True)
        output = layer(given)
        output.sin().sum().backward()
        gradients = [parameter.grad for parameter in layer.parameters()]
        found.append([output, given.grad, *gradients])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(ours(values), theirs(values))


def test_no_gradient_is_made_for_what_needs_none():
    layer = Linear(5, 3)
    layer.weight.requires_grad_(False)
    layer(torch.ones(2, 5)).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is not None
