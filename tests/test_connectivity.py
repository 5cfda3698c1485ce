import numpy as np
import pytest
from catalog import create, images, randomize

import dgnet_keras as dg
from dgnet_keras import connectivity


def adjacency_of(weights):
    """One stage of 2 blocks from rows of its edges 0 -> 1, 0 -> out, 1 -> out."""
    weights = np.asarray(weights, "float32")
    matrix = np.zeros((len(weights), 3, 3), "float32")
    matrix[:, *np.triu_indices(3, 1)] = weights
    return {"stage1": matrix}


HEALTHY = adjacency_of([[0.5, 0.0, 0.5], [0.4, 0.3, 0.5], [0.5, 0.0, 0.6], [0.5, 0.2, 0.4]])


def kinds(adjacency):
    return [finding.kind for finding in connectivity.router_health(adjacency)]


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


def test_a_healthy_network_is_left_alone():
    assert kinds(HEALTHY) == []


@pytest.mark.parametrize(
    ("weights", "kind"),
    [
        ([[0.5, 0.5, 0.5], [0.501, 0.5, 0.5]], "collapsed"),
        ([[0.5, 0.0, 0.5]] * 3, "collapsed"),
        ([[0.5, 0.4, 0.3], [0.4, 0.5, 0.3]], "always_open"),
        ([[0.0, 0.4, 0.0], [0.0, 0.5, 0.0]], "dead_nodes"),
        ([[0.0, 0.4, 0.0], [0.0, 0.5, 0.0]], "dead_edges"),
        ([[0.3, 0.4, 0.0], [0.0, 0.5, 0.0]], "dead_nodes"),  # block 1 leads nowhere
    ],
)
def test_ill_routers_are_named_with_a_suggestion(weights, kind):
    findings = {f.kind: f for f in connectivity.router_health(adjacency_of(weights))}
    assert kind in findings
    assert "Try" in findings[kind].message
    assert "stage1" in findings[kind].stages


def test_a_stage_that_stays_open_is_no_fault_while_another_does_not():
    varying = adjacency_of([[0.5, 0.4, 0.3], [0.4, 0.5, 0.3], [0.4, 0.6, 0.3], [0.3, 0.5, 0.3]])
    assert kinds(varying) == ["always_open"]
    assert kinds({**HEALTHY, "stage2": varying["stage1"]}) == []
    same = adjacency_of([[0.5, 0.5, 0.5]] * 4)["stage1"]
    (finding,) = connectivity.router_health({**HEALTHY, "stage2": same})
    assert (finding.kind, finding.stages) == ("collapsed", ("stage2",))


def test_new_routers_have_collapsed_and_random_ones_have_not():
    x = images(64)
    assert kinds(dg.adjacency(create("resnet_basic"), x)) == ["collapsed"]
    assert "collapsed" not in kinds(dg.adjacency(randomize(create("resnet_basic")), x))


def test_a_block_is_used_where_one_image_has_a_whole_path_through_it():
    # 0 -> 1 -> 2 with 2 -> out closed, or 0 -> 2 -> out: block 1 reaches the output for no image.
    matrices = np.zeros((200, 4, 4))
    matrices[:100, 0, 1] = matrices[:100, 1, 2] = matrices[:100, 0, 3] = 0.5
    matrices[100:, 0, 2] = matrices[100:, 2, 3] = 0.5
    assert connectivity.used_nodes(matrices > 0)[[0, 150]].tolist() == [
        [True, False, False, True],
        [True, False, True, True],
    ]
    findings = {f.kind: f.message for f in connectivity.router_health({"stage1": matrices})}
    assert "stage1: 1)" in findings["dead_nodes"]


def test_statistics_are_enough_for_the_routers_health():
    statistics = connectivity.EdgeStatistics.of(HEALTHY)
    assert connectivity.router_health(statistics) == []
    assert statistics.open_rate["stage1"][0, 2] == 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: connectivity.path_diversity({}), "no adjacency"),
        (lambda: connectivity.paths(np.zeros((2, 3, 3))), "dict of stage name.*ndarray"),
        (lambda: connectivity.router_health(adjacency_of([[1, np.nan, 1]] * 2)), "2 of 2 images"),
        (lambda: connectivity.path_diversity(HEALTHY, ["a", "b", "c", "d"]), "whole numbers"),
        (lambda: connectivity.path_diversity(HEALTHY, [0.5, 1, 2, 3]), "whole numbers"),
        (lambda: connectivity.paths({"stage1": np.zeros((3, 3))}), r"\(images, N \+ 1, N \+ 1\)"),
        (lambda: connectivity.path_diversity(HEALTHY, [1, 2]), "2 labels, 4 images"),
        (lambda: connectivity.router_health(adjacency_of([[1, 0, 1]])), "at least 2 images"),
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
