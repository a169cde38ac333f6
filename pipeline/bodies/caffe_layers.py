"""What the bodies of the paper's Table 1 share: Caffe's normalisation, and the first weights of the released ZF-5."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

RELEASED_MEAN = (128.0, 128.0, 128.0)
RELEASED_STD = (1.0, 1.0, 1.0)
"""Blue, green, red, in units of 0..255: SPP_net caffe_anysize_test.m:10-17 subtracts 128 from every value."""


class WithinChannelNorm(nn.Module):
    """Caffe's local response normalisation WITHIN_CHANNEL: x * (1 + alpha * mean of x^2 over size x size)^-beta.

    The mean is over the window of the same channel; beyond the edge stand zeros, and the divisor is always size^2
    (BVLC/caffe lrn_layer.cpp, LayerSetUp). ``torch.nn.LocalResponseNorm`` is another thing: it goes across channels.
    The defaults are the release's (SPP_net Zeiler_conv5.prototxt, norm1 and norm2).
    """

    def __init__(self, size: int = 3, alpha: float = 5e-5, beta: float = 0.75) -> None:
        super().__init__()
        self.size, self.alpha, self.beta = size, alpha, beta

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normalised: torch.Tensor = _Normalised.apply(x, self.size, self.alpha, self.beta)
        return normalised


class _Normalised(torch.autograd.Function):
    """The same with its gradient written out: fewer passes over memory, which is all that it takes.

    With t = 1 + alpha * mean(x^2) the gradient is g t^-beta - 2 alpha beta x * mean(g x t^(-beta - 1)), for the mean
    over a centred window is its own transpose. A third of a training step of zf5 on a CPU was spent on what autograd
    made of it.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, size: int, alpha: float, beta: float) -> torch.Tensor:
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x  # squares beyond their range or precision
        t = _window_mean(wide * wide, size).mul_(alpha).add_(1)
        if beta == 0.75:
            root = t.rsqrt()
            factor = root.sqrt().mul_(root)  # t^-0.75, without a logarithm
        else:
            factor = t.pow(-beta)
        ctx.save_for_backward(wide, t, factor)
        ctx.constants = size, 2 * alpha * beta
        return (wide * factor).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (given,) = gradients
        x, t, factor = ctx.saved_tensors
        size, twice = ctx.constants
        gradient = given.to(x.dtype)
        through = _window_mean((gradient * x).mul_(factor).div_(t), size).mul_(x).mul_(-twice)
        return through.addcmul_(gradient, factor).to(given.dtype), None, None, None


def _window_mean(values: torch.Tensor, size: int) -> torch.Tensor:
    return nn.functional.avg_pool2d(values, size, 1, size // 2, count_include_pad=True)


def initialised(conv: nn.Conv2d, bias: float) -> nn.Conv2d:
    """``conv`` with weights from N(0, 0.01) and biases ``bias``, as the release's weight_filler and bias_filler do."""
    assert conv.bias is not None
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.constant_(conv.bias, bias)
    return conv
