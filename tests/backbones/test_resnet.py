import keras
import numpy as np
import pytest
from catalog import create, images

import dgnet_keras as dg


@pytest.mark.parametrize(
    ("name", "levels", "channels"),
    [
        ("resnet18", ["P2", "P3", "P4", "P5"], [64, 128, 256, 512]),
        ("resnet50", ["P2", "P3", "P4", "P5"], [256, 512, 1024, 2048]),
        ("resnet20_cifar", ["P0", "P1", "P2"], [16, 32, 64]),
    ],
)
def test_the_pyramid_has_a_level_for_each_stride(name, levels, channels):
    backbone = dg.create(name, num_classes=None, input_shape=(64, 96, 3))
    assert list(backbone.pyramid_outputs) == levels
    for (level, features), width in zip(backbone.pyramid_outputs.items(), channels, strict=True):
        stride = 2 ** int(level[1:])
        assert features.shape == (None, 64 // stride, 96 // stride, width)
    last = backbone.pyramid_outputs[levels[-1]]
    assert backbone.output_shape == last.shape


def test_adjacency_has_a_matrix_for_each_stage_with_edges():
    backbone = dg.create("resnet50", num_classes=None, depths=(1, 4, 2, 1), widths=(4, 4, 4, 4))
    assert {k: v.shape[1] for k, v in backbone.adjacency_outputs.items()} == {
        "stage2": 5,
        "stage3": 3,
    }
    connectivity = keras.Model(backbone.input, backbone.adjacency_outputs)
    assert connectivity(images(2, 224))["stage2"].shape == (2, 5, 5)


def test_max_nodes_names_the_graphs_of_a_split_stage():
    options = {"num_classes": None, "depths": (3, 4, 9, 3), "widths": (2, 2, 2, 2)}
    backbone = dg.create("resnet50", max_nodes=4, **options)
    assert list(backbone.adjacency_outputs) == [
        "stage1",
        "stage2",
        "stage3_graph0",
        "stage3_graph1",
        "stage3_graph2",
        "stage4",
    ]
    paths = {v.path for v in backbone.weights}
    assert {v.path for v in dg.create("resnet50", wiring="chain", **options).weights} <= paths


def test_the_stride_is_on_the_3x3_convolution_of_a_bottleneck():
    options = {"num_classes": None, "depths": (1, 1), "widths": (4, 4)}
    block = dg.create("resnet50", **options).get_layer("stage2").blocks[0]
    assert [conv.strides for conv in block.steps] == [1, 2, 1]


def test_a_bottleneck_variant_can_be_made_from_a_basic_one():
    options = {"num_classes": None, "depths": (1, 1), "widths": (4, 8), "input_shape": (32, 32, 3)}
    assert dg.create("resnet18", block="bottleneck", **options).output_shape[-1] == 32
    assert dg.create("resnet50", block="basic", **options).output_shape[-1] == 8
    assert dg.create("resnet50", expansion=2, **options).output_shape[-1] == 16


def test_a_model_without_edges_has_no_adjacency():
    model = create("resnet_basic", depths=(1, 1))
    assert model.adjacency_outputs == {}
    assert dg.adjacency(model, images()) == {}


def test_only_models_of_the_package_have_an_adjacency():
    with pytest.raises(ValueError, match="must be a backbone or classifier"):
        dg.adjacency(keras.Sequential([keras.layers.Dense(1)]), images())


def test_adjacency_is_the_same_for_any_batch_size():
    model = create("resnet_basic")
    a, b = (dg.adjacency(model, images(5), batch_size=n) for n in (2, 5))
    np.testing.assert_allclose(a["stage2"], b["stage2"], atol=1e-6)
