import keras
import pytest

from benchmarks import grouped_conv
from dgnet_keras.layers.conv import GroupedConv2D


@pytest.mark.parametrize("convolution", [GroupedConv2D, keras.layers.Conv2D])
def test_a_stage_has_the_grouped_convolution_that_is_measured(convolution, monkeypatch):
    monkeypatch.setattr(grouped_conv, "STAGES", {1: (2, 64, 32, 2)})
    stage = grouped_conv.build_stage(convolution, 1)
    layers = stage._flatten_layers()
    found = {type(x) for x in layers if isinstance(x, keras.layers.Conv2D) and x.groups > 1}
    assert found == {convolution}
