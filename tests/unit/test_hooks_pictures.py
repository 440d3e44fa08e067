"""Feature maps and kernels as pictures: which are drawn, and that their pixels are the daemon's."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from ranktap import Tap, pictures
from ranktapd.render.grid import make_grid, to_uint8_hwc
from tests.support.networks import network, sgd, train
from tests.support.watching import Make, logged, silent_taps


@pytest.fixture
def make() -> Iterator[Make]:
    with silent_taps() as make:
        yield make


@pytest.fixture
def tap(make: Make) -> Tap:
    return make()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_pixels_are_those_of_the_daemons_normalising(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    maps = (torch.randn(7, 1, 9, 5) * torch.logspace(-8, 8, 7).view(-1, 1, 1, 1)).to(dtype).float()
    maps[3] = 2.0  # of no range at all
    ours = make_grid(pictures.to_pixels(maps).numpy(), nrow=2)
    daemons = make_grid(maps.numpy(), nrow=2, normalize=True, scale_each=True)
    np.testing.assert_array_equal(to_uint8_hwc(ours, "CHW"), to_uint8_hwc(daemons, "CHW"))


def test_colour_kernels_are_scaled_as_one_picture_each() -> None:
    weight = torch.randn(5, 3, 7, 7)
    ours = pictures.kernels(weight, 4, 7)
    daemons = make_grid(weight[:4].numpy(), normalize=True, scale_each=True)
    drawn = to_uint8_hwc(make_grid(ours.numpy()), "CHW")
    np.testing.assert_array_equal(drawn, to_uint8_hwc(daemons, "CHW"))


def test_maps_are_chosen_and_shrunk_before_they_travel() -> None:
    output = torch.randn(8, 70, 40, 20)
    made = pictures.feature_maps(output, samples=2, max_maps=6, max_edge=10)
    assert made.shape == (12, 1, 10, 5)
    assert made.dtype is torch.uint8
    averaged = torch.nn.functional.avg_pool2d(output[:2, :6], 4).flatten(0, 1).unsqueeze(1)
    assert torch.equal(made, pictures.to_pixels(averaged))


def test_feature_maps_and_kernels_of_a_watched_model(tap: Tap) -> None:
    model = network()
    seen = []
    model[0].register_forward_hook(lambda *args: seen.append(args[2].detach().clone()))
    tap.watch(model, every=2, feature_maps=True, kernels=True)
    weight = model[0].weight.detach().clone()
    train(model, sgd(model), 2)
    found = logged(tap).pictures
    assert set(found) == {"feature_maps/0", "kernels/0.weight"}
    assert list(found["feature_maps/0"]) == [0]
    maps = found["feature_maps/0"][0]
    assert maps.parameters["nrow"] == 2
    np.testing.assert_array_equal(maps.array(), pictures.to_pixels(seen[0][0].unsqueeze(1)))
    shown = found["kernels/0.weight"][0].array()
    assert shown.shape == (4, 3, 24, 24)
    np.testing.assert_array_equal(shown[:, :, ::8, ::8], pictures.to_pixels(weight))


def test_what_has_no_maps_is_told(tap: Tap, caplog: pytest.LogCaptureFixture) -> None:
    model = network()
    tap.watch(model, every=1, feature_maps=["4"])
    train(model, sgd(model), 2)
    assert logged(tap).pictures == {}
    assert sum("feature_maps/4" in r.getMessage() for r in caplog.records) == 1
