import math
import pathlib

import pytest

from benchmarks import scale
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
    batch = 16
    per_share = (scale.TIMES[1.0] - scale.TIMES[0.5]) / 0.5
    mean = scale.TIMES[1.0] - per_share * (1 - scale.SHARE)
    expected = largest * per_share * scale.SHARE_STD / math.sqrt(batch) / mean
    assert scale.simulate(replicas, batch) == pytest.approx(expected, rel=0.05)


def test_the_document_has_the_table():
    document = pathlib.Path(__file__).parents[2] / "docs" / "performance.md"
    assert "\n".join(scale.paper_table()) in document.read_text()
