import numpy as np
import pytest

from dgnet_keras.visualize import plot_adjacency_by_class


def test_heat_maps_show_mean_weight_and_open_rate_of_each_class():
    adjacency = np.zeros((4, 3, 3), "float32")
    adjacency[0, 0, 1] = adjacency[1, 0, 1] = 0.6
    adjacency[2, 0, 1] = 0.8
    figure = plot_adjacency_by_class(
        {"stage1": adjacency}, [0, 0, 1, 1], class_names=["cat", "dog"]
    )
    maps = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    weights, rates = maps[:2], maps[2:4]
    np.testing.assert_allclose([m[0, 0] for m in weights], [0.6, 0.4], rtol=1e-6)
    np.testing.assert_allclose([m[0, 0] for m in rates], [1.0, 0.5])
    assert np.ma.is_masked(np.ma.masked_invalid(weights[0])[1, 0]), "1 -> 1 is not an edge"
    assert [axis.get_title() for axis in figure.axes[:2]] == ["cat", "dog"]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="no adjacency"):
        plot_adjacency_by_class({}, [0])
    with pytest.raises(ValueError, match="2 labels, 3 images in 'stage1'"):
        plot_adjacency_by_class({"stage1": np.zeros((3, 3, 3))}, [0, 1])
