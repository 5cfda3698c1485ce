import json
import math
import pathlib

import pytest

from benchmarks import measure, scale
from benchmarks.scale import Machine


def test_a_ring_passes_almost_twice_the_bytes():
    machine = Machine("m", bandwidth=1e9, latency=1e-6)
    assert scale.reduce_seconds(8e6, 2, machine) == pytest.approx(8e-3 + 2e-6)
    assert scale.reduce_seconds(8e6, 64, machine) == pytest.approx(2 * 63 / 64 * 8e-3 + 126e-6)


def test_synchronised_normalisation_costs_latencies():
    machine = Machine("m", bandwidth=1e9, latency=1e-6)
    assert scale.norm_seconds(50, 8, machine) == pytest.approx(2 * 50 * 6e-6)


@pytest.mark.parametrize(
    ("replicas", "largest"), [(1, 0.0), (2, 1 / math.sqrt(math.pi)), (8, 1.4236)]
)
def test_the_slowest_is_the_largest_of_so_many_normal_means(replicas, largest):
    paths = scale.Paths(fixed=0.3, per_share=0.8, share=0.5, share_std=0.04)
    expected = largest * 0.8 * 0.04 / math.sqrt(16) / (0.3 + 0.8 * 0.5)
    assert scale.simulate(paths, replicas, batch=16) == pytest.approx(expected, rel=0.05)


def test_what_was_measured_of_paths_is_read_from_the_rows():
    paths = scale.measured_paths()
    file = measure.ROOT / "benchmarks" / "results" / "paths_onednn_avx512.json"
    wanted = {"model": "resnet56_cifar", "mode": "train", "share": 1.0}
    (row,) = (r for r in json.loads(file.read_text()) if wanted.items() <= r["settings"].items())
    measured = row["ratios"]["path/chain"]["median"]
    assert paths.fixed + paths.per_share == pytest.approx(measured, abs=1e-3)
    assert 0 < paths.fixed < 0.6
    assert 0 < paths.share_std < paths.share < 0.6


def test_the_document_has_the_table():
    document = pathlib.Path(__file__).parents[2] / "docs" / "performance.md"
    assert "\n".join(scale.paper_table()) in document.read_text()
