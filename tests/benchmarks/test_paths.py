import pytest

from benchmarks import paths

TINY = {"model": "resnet20_cifar", "size": 16, "spec": {"depths": [4, 4], "widths": [4, 8]}}


def test_there_is_a_job_for_each_network_mode_batch_and_share():
    jobs = paths.plan(["resnet50"], (1.0, 0.5), 3)
    kinds = {(j.settings["mode"], j.settings["batch"], j.settings["share"]) for j in jobs}
    assert kinds == {(m, b, s) for m, b in paths.NETWORKS["resnet50"][1] for s in (1.0, 0.5)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "batch", "share"), [("inference", 32, 1.0), ("inference", 1, 0.7), ("train", 32, 0.7)]
)
def test_a_row_says_the_share_that_was_timed(mode, batch, share):
    settings = {**TINY, "mode": mode, "batch": batch, "share": share}
    row = paths.measure_here(settings, dict.fromkeys(["chain", *paths.PATHS[mode]], 1))
    assert abs(row["measured_share"] - share) < 0.05
    assert set(row["ratios"]) == {f"{name}/chain" for name in paths.PATHS[mode]}
    assert all(ratio["median"] > 0 for ratio in row["ratios"].values())


def test_the_table_has_a_row_for_each_way_to_train():
    def row(mode, share, ratios):
        return {
            "settings": {"model": "resnet50", "mode": mode, "batch": 8, "share": share},
            "measured_share": round(share - 0.01 * (share < 1), 2),
            "milliseconds": {"chain": {"median": 100 * share}},
            "ratios": {f"{name}/chain": {"median": value} for name, value in ratios.items()},
        }

    lines = paths.table(
        [
            row("inference", 1.0, {"path": 1.04}),
            row("train", 1.0, {"path": 1.08, "path_all": 1.03}),
            row("train", 0.5, {"path": 0.71}),  # of before the default was timed
        ]
    )
    assert lines[2:] == [
        "| `resnet50` | inference | 8 | 100.0 | 1.04 | - |",
        '| `resnet50` | training, `path_gradient="all"` | 8 | 100.0 | 1.03 | - |',
        '| `resnet50` | training, `path_gradient="taken"` | 8 | 100.0 | 1.08 | 0.71 at 0.49 |',
    ]
