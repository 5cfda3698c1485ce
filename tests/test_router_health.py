import re

import numpy as np
import pytest
import tensorflow as tf
from adjacency_helpers import HEALTHY, adjacency_of
from catalog import adjacency, create, images, randomize

from dgnet_keras.edge_statistics import EdgeStatistics, used_nodes
from dgnet_keras.layers.path import path_adjacency
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
def test_ill_routers_are_named_with_one_suggestion(weights, kind):
    findings = router_health(adjacency_of(weights))
    assert "stage1" in {f.kind: f for f in findings}[kind].stages
    assert ["Try" in f.message for f in findings] == [True] + [False] * (len(findings) - 1)


def paths_of(taken):
    """An adjacency of two stages' paths, of which nodes are taken: (images, N - 1)."""
    matrix = path_adjacency(tf.constant(taken, tf.float32)).numpy()
    return {"stage1": matrix, "stage2": matrix}


@pytest.mark.parametrize(
    ("adjacency", "is_path", "kinds_found", "words"),
    [
        # A dynamic network whose skip edges have all closed, as after init="static".
        (
            adjacency_of([[0.9, 0.0, 0.9], [1.0, 0.0, 1.1], [1.1, 0.0, 0.8]]),
            False,
            ["one_path"],
            "skip edges are closed",
        ),
        (paths_of([[1, 1], [1, 1]]), True, ["one_path"], "through every block.*macs_target"),
        (paths_of([[0, 1], [0, 1]]), True, ["one_path", "dead_nodes"], "freeze"),
        (paths_of([[0, 1], [0, 0]]), True, ["dead_nodes"], "stage1: 1; stage2: 1.*freeze"),
        (paths_of([[1, 0], [0, 1], [1, 1]]), True, [], ""),
    ],
)
def test_states_of_paths_that_matter_are_seen(adjacency, is_path, kinds_found, words):
    findings = router_health(adjacency, is_path=is_path)
    assert [f.kind for f in findings] == kinds_found
    assert re.search(words, " ".join(f.message for f in findings))


def test_a_share_far_from_its_target_is_seen():
    assert router_health(HEALTHY, share=0.54, target=0.5) == []
    (finding,) = router_health(HEALTHY, share=0.62, target=0.5)
    assert finding.kind == "off_target"
    assert "0.620" in finding.message and "calibrate" in finding.message


def test_a_stage_that_stays_open_is_no_fault_while_another_does_not():
    varying = adjacency_of([[0.5, 0.4, 0.3], [0.4, 0.5, 0.3], [0.4, 0.6, 0.3], [0.3, 0.5, 0.3]])
    assert kinds(varying) == ["always_open"]
    assert kinds({**HEALTHY, "stage2": varying["stage1"]}) == []
    same = adjacency_of([[0.5, 0.5, 0.5]] * 4)["stage1"]
    (finding,) = router_health({**HEALTHY, "stage2": same})
    assert (finding.kind, finding.stages) == ("collapsed", ("stage2",))


def test_new_routers_have_collapsed_and_random_ones_have_not():
    x = images(64)
    assert kinds(adjacency(create("resnet_basic"), x)) == ["collapsed"]
    assert "collapsed" not in kinds(adjacency(randomize(create("resnet_basic")), x))


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
