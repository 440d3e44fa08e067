"""Feature maps and kernels as pictures, chosen, shrunk and scaled where the tensor is.

What travels is uint8, an eighth to a hundredth of the tensor. The pixels are those that
the daemon would draw of the same floats with `normalize=True, scale_each=True`: each
picture from its own smallest to its own largest value, in float32, step by step as
`ranktapd.render.grid` does it.
"""

from __future__ import annotations

import math
from typing import Any, Final

import torch

KERNEL_EDGE: Final = 24
"""Kernels are enlarged, by a whole factor, to at least so many pixels: 3 x 3 cannot be seen."""


@torch.no_grad()
def feature_maps(output: Any, samples: int, max_maps: int, max_edge: int) -> Any:
    """The maps of the first `samples` of a batch: uint8 (n, 1, h, w), and how many are in a row.

    `output` is (N, C, H, W) or (C, H, W); of each sample the first `max_maps` maps are taken.

    Raises:
        ValueError: it has another number of dimensions, or no pixels.
    """
    batch = output.detach()
    batch = batch.unsqueeze(0) if batch.dim() == 3 else batch
    if batch.dim() != 4 or 0 in batch.shape:
        raise ValueError(f"expected (N, C, H, W) with pixels, got shape {tuple(output.shape)}")
    maps = batch[:samples, :max_maps].flatten(0, 1).unsqueeze(1)
    return to_pixels(shrunk(maps.float(), max_edge))


@torch.no_grad()
def kernels(weight: Any, max_maps: int, max_edge: int) -> Any:
    """A convolution's kernels: uint8 (n, C, h, w), in colour when they have three channels, else
    each channel a grey picture. The first `max_maps` of them.

    Raises:
        ValueError: it is no (O, I, H, W).
    """
    weight = weight.detach()
    if weight.dim() != 4 or 0 in weight.shape:
        raise ValueError(f"expected (O, I, H, W) with pixels, got shape {tuple(weight.shape)}")
    colour = weight.shape[1] == 3
    chosen = weight[:max_maps] if colour else weight.flatten(0, 1)[:max_maps].unsqueeze(1)
    pixels = to_pixels(shrunk(chosen.float(), max_edge))
    factor = -(-min(KERNEL_EDGE, max_edge) // max(pixels.shape[-2:]))
    return pixels.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def per_row(count: int) -> int:
    """Pictures in a row, so that the grid is about square."""
    return max(1, int(math.sqrt(count)))


def shrunk(maps: Any, max_edge: int) -> Any:
    """Float pictures (n, C, h, w), averaged down so that no edge is longer than `max_edge`."""
    height, width = maps.shape[-2:]
    if max(height, width) <= max_edge:
        return maps
    scale = max_edge / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return torch.nn.functional.adaptive_avg_pool2d(maps, size)


def to_pixels(maps: Any) -> Any:
    """Float32 pictures (n, C, h, w), each scaled from its own range to 0 to 255."""
    low = maps.amin((1, 2, 3), keepdim=True)
    high = maps.amax((1, 2, 3), keepdim=True)
    # The width is rounded once, from float64, as the daemon does.
    width = (high.double() - low.double()).clamp_min(1e-5).float()
    scaled = (maps - low) / width * 255
    return torch.nan_to_num(scaled.clamp(0, 255), nan=0.0).to(torch.uint8)
