import pytest

from benchmarks import paths

TINY = {"model": "resnet20_cifar", "size": 16, "spec": {"depths": [4, 4], "widths": [4, 8]}}


def test_there_is_a_job_for_each_network_mode_batch_and_share():
    jobs = paths.plan(["resnet50"], (1.0, 0.5), 3)
    kinds = {(j.settings["mode"], j.settings["batch"], j.settings["share"]) for j in jobs}
    assert kinds == {(m, b, s) for m, b in paths.NETWORKS["resnet50"][1] for s in (1.0, 0.5)}


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "batch"), [("inference", 32), ("inference", 1), ("train", 32)])
def test_a_row_says_the_share_that_was_timed(mode, batch):
    for share in (1.0, 0.7):
        settings = {**TINY, "mode": mode, "batch": batch, "share": share}
        row = paths.measure_here(settings, {"chain": 1, "path": 1})
        assert abs(row["measured_share"] - share) < 0.05
        assert row["ratios"]["path/chain"]["median"] > 0
