import numpy as np
import pytest
from adjacency_helpers import HEALTHY, adjacency_of
from catalog import create, images, randomize

import dgnet_keras as dg
from dgnet_keras.edge_statistics import EdgeStatistics, used_nodes
from dgnet_keras.router_health import router_health


def kinds(adjacency):
    return [finding.kind for finding in router_health(adjacency)]


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
    findings = {f.kind: f for f in router_health(adjacency_of(weights))}
    assert kind in findings
    assert "Try" in findings[kind].message
    assert "stage1" in findings[kind].stages


def test_a_stage_that_stays_open_is_no_fault_while_another_does_not():
    varying = adjacency_of([[0.5, 0.4, 0.3], [0.4, 0.5, 0.3], [0.4, 0.6, 0.3], [0.3, 0.5, 0.3]])
    assert kinds(varying) == ["always_open"]
    assert kinds({**HEALTHY, "stage2": varying["stage1"]}) == []
    same = adjacency_of([[0.5, 0.5, 0.5]] * 4)["stage1"]
    (finding,) = router_health({**HEALTHY, "stage2": same})
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
    assert used_nodes(matrices > 0)[[0, 150]].tolist() == [
        [True, False, False, True],
        [True, False, True, True],
    ]
    findings = {f.kind: f.message for f in router_health({"stage1": matrices})}
    assert "stage1: 1)" in findings["dead_nodes"]


def test_statistics_are_enough_for_the_routers_health():
    statistics = EdgeStatistics.of(HEALTHY)
    assert router_health(statistics) == []
    assert statistics.open_rate["stage1"][0, 2] == 0.5


@pytest.mark.parametrize(
    ("weights", "message"),
    [([[1, np.nan, 1]] * 2, "2 of 2 images"), ([[1, 0, 1]], "at least 2 images")],
)
def test_images_that_tell_nothing_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        router_health(adjacency_of(weights))
