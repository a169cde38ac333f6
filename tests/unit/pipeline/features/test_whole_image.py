"""Views of an image, and the layers of a network on them."""

import cv2
import numpy as np
import pytest
import torch

from pipeline.bodies import BODIES, Body, load_state
from pipeline.boxes import as_boxes
from pipeline.features.regions import RegionExtractor
from pipeline.features.whole_image import WholeImageExtractor, layers_of, pool_part, whole_layers
from pipeline.images.view import View, show
from pipeline.network.head import new_head
from pipeline.phases import PhaseClock
from pipeline.spp import pyramid

MOST = 1200 * 2400
LEVELS = (6, 3, 2, 1)


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (150, 210, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def body():
    spec = BODIES["efficientnet_lite0"]
    return Body(spec, load_state(spec, "random"))


class TestView:
    def test_parses_names(self):
        assert View.parse("crop") == View("crop", 224)
        assert View.parse("full-392") == View("full", 392)
        assert [View.parse(text).fixed for text in ("crop", "warp", "full-224")] == [True, True, False]

    @pytest.mark.parametrize("text", ["", "full", "full-", "full-31", "full-5000", "whole", "full-224 "])
    def test_others_are_no_views(self, text):
        with pytest.raises(ValueError, match="the views are"):
            View.parse(text)

    def test_a_crop_is_the_centre_of_the_image_at_short_side_256(self, image):
        scaled = cv2.resize(image, (359, 256), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(show(image, View.parse("crop"), MOST), scaled[16:240, 67:291])

    def test_warp_and_full_show_the_whole_image(self, image):
        assert show(image, View.parse("warp"), MOST).shape == (224, 224, 3)
        assert show(image, View.parse("full-100"), MOST).shape == (100, 140, 3)

    def test_a_crop_of_a_very_long_image_is_made_of_its_middle(self):
        strip = np.zeros((2, 20_000, 3), np.uint8)
        strip[:, 9_990:10_010] = 200
        shown = show(strip, View.parse("crop"), MOST)
        assert shown.shape == (224, 224, 3)
        assert shown.mean() > 190

    def test_a_very_long_image_is_taken_smaller(self):
        strip = np.zeros((10, 5000, 3), np.uint8)
        height, width = show(strip, View.parse("full-224"), MOST).shape[:2]
        assert height * width <= MOST
        assert width / height == pytest.approx(500, rel=0.05)


class TestLayers:
    def test_of_bodies(self):
        assert layers_of(BODIES["zf5"], LEVELS, True) == ("conv4", "conv5", "pool", "spp", "fc6", "fc7")
        assert layers_of(BODIES["efficientnet_lite0"], LEVELS, False) == ("c4", "c5", "pool", "spp")
        assert layers_of(BODIES["efficientnet_lite0"], (4, 3), False) == ("c4", "c5", "spp")
        assert whole_layers(("c4", "c5", "pool", "spp", "fc6")) == ("pool", "spp", "fc6")

    def test_spp_of_a_full_view_is_the_pooled_box_of_the_whole_image(self, image, body):
        whole = WholeImageExtractor(body, LEVELS, None, MOST)(image, View.parse("full-160"), ("spp",), PhaseClock())
        box = as_boxes([(0, 0, 210, 150)])
        np.testing.assert_array_equal(whole["spp"].values, RegionExtractor(body, (160,))(image, box).vectors[0])

    def test_maps_are_flattened_with_channels_last(self, image, body):
        found = WholeImageExtractor(body, LEVELS, None, MOST)(image, View.parse("crop"), ("c4", "c5"), PhaseClock())
        last = found["c5"]
        assert (last.height, last.width, last.channels) == (14, 14, 320)
        assert (found["c4"].height, found["c4"].width, found["c4"].channels) == (14, 14, 112)
        batch = body.preprocess(show(image, View.parse("crop"), MOST))
        expected = pyramid.half(body.conv_map_of(batch).permute(1, 2, 0).numpy())
        np.testing.assert_array_equal(last.values.reshape(14, 14, 320), expected)

    def test_pool_is_the_finest_level_alone(self, image, body):
        view, clock = View.parse("full-160"), PhaseClock()
        for levels in (LEVELS, (1, 6, 2)):
            spp = WholeImageExtractor(body, levels, None, MOST)(image, view, ("pool",), clock)["spp"].values
            alone = WholeImageExtractor(body, (6,), None, MOST)(image, view, ("spp",), clock)["spp"].values
            np.testing.assert_array_equal(spp[pool_part(320, levels)], alone)

    def test_fully_connected_layers_are_those_of_the_head(self, image, body):
        head = new_head(320 * 5, (7, 4), 3, seed=0, rms=1.0).eval()
        layers = ("spp", "fc6", "fc7")
        found = WholeImageExtractor(body, (2, 1), head, MOST)(image, View.parse("full-160"), layers, PhaseClock())
        vector = torch.from_numpy(found["spp"].values.astype(np.float32))[None]
        for name in ("fc6", "fc7"):
            expected = head(vector, name)[0].detach().half().numpy()
            np.testing.assert_array_equal(found[name].values, expected)
