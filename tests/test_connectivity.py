import numpy as np
import pytest
from adjacency_helpers import HEALTHY, adjacency_of

from dgnet_keras import connectivity


def test_paths_are_numbered_by_frequency():
    numbers, paths = connectivity.paths(
        adjacency_of([[0.5, 0.2, 0.5], [0.5, 0, 0.5], [0.4, 0, 0.1], [0.1, 0, 0.9]])
    )
    assert numbers.tolist() == [1, 0, 0, 0]
    assert paths.tolist() == [[True, False, True], [True, True, True]]


def test_paths_of_several_stages_are_counted_together():
    half = adjacency_of([[0.5, 0, 0.5]] * 2 + [[0.5, 0.5, 0.5]] * 2)["stage1"]
    found = connectivity.path_diversity({"stage1": half, "stage2": half[[0, 2, 1, 3]]})
    assert found["distinct_paths"] == 4
    assert found["path_entropy"] == pytest.approx(2)
    assert found["stages"]["stage1"]["distinct_paths"] == 2
    assert found["stages"]["stage1"]["path_entropy"] == pytest.approx(1)


def test_a_path_that_tells_the_class_has_all_its_information():
    adjacency = adjacency_of([[0.5, 0, 0.5]] * 40 + [[0.5, 0.5, 0.5]] * 40)
    labels = np.repeat([3, 7], 40)
    found = connectivity.path_diversity(adjacency, labels)
    assert found["mutual_information"] == pytest.approx(1)
    assert found["class_entropy"] == pytest.approx(1)
    assert found["mutual_information_by_chance"] < 0.1
    stage = found["stages"]["stage1"]
    assert stage["weight_by_class"][0, 2] == pytest.approx(1)
    assert stage["edge_entropy"][0, 2] == pytest.approx(1)
    assert stage["edge_entropy"][0, 1] == 0
    unrelated = connectivity.path_diversity(adjacency, np.tile([3, 7], 40))
    assert unrelated["mutual_information"] == pytest.approx(0, abs=1e-9)
    assert unrelated["stages"]["stage1"]["weight_by_class"][0, 2] == pytest.approx(0, abs=1e-9)


def test_nearest_images_are_those_of_like_weights():
    adjacency = adjacency_of([[0.5, 0, 0.5], [0.9, 0, 0.5], [0.6, 0, 0.5], [0.5, 0.5, 0.5]])
    indices, distances = connectivity.nearest_images(adjacency, 0, count=2)
    assert indices.tolist() == [2, 1]
    np.testing.assert_allclose(distances, [0.1, 0.4], rtol=1e-5)
    assert len(connectivity.nearest_images(adjacency, 3, count=10)[0]) == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: connectivity.path_diversity({}), "no adjacency"),
        (lambda: connectivity.paths(np.zeros((2, 3, 3))), "dict of stage name.*ndarray"),
        (lambda: connectivity.metrics(adjacency_of([[1, np.nan, 1]] * 2)), "2 of 2 images"),
        (lambda: connectivity.path_diversity(HEALTHY, ["a", "b", "c", "d"]), "whole numbers"),
        (lambda: connectivity.path_diversity(HEALTHY, [0.5, 1, 2, 3]), "whole numbers"),
        (lambda: connectivity.paths({"stage1": np.zeros((3, 3))}), r"\(images, N \+ 1, N \+ 1\)"),
        (lambda: connectivity.path_diversity(HEALTHY, [1, 2]), "2 labels, 4 images"),
        (lambda: connectivity.check_adjacency({}), "no adjacency"),
        (
            lambda: connectivity.paths({**HEALTHY, "stage2": np.zeros((3, 3, 3))}),
            "same images",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_image_that_is_not_there_is_named():
    with pytest.raises(IndexError, match=r"\[0, 4\).*4"):
        connectivity.nearest_images(HEALTHY, 4)
