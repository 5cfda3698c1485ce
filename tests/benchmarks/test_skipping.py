import json

import numpy as np
import pytest

from benchmarks import (
    measure,
    skipping,
    skipping_markdown,
    skipping_networks,
    skipping_paths,
)
from dgnet_keras.complexity import model_costs
from train.turns import in_turns

pytestmark = pytest.mark.xdist_group("skipping")  # what its fixtures make is made once
SETTINGS = {
    "model": "resnet20_cifar",
    "spec": {"depths": (6, 5), "widths": (4, 8)},
    "size": 8,
    "mode": "inference",
    "batch": 16,
    "share": 0.6,
    "contestants": list(skipping_networks.CONTESTANTS),
}
ENVIRONMENT = {
    "commit": "abc",
    "tensorflow": "2.20.0",
    "onednn": False,
    "cpu": "x",
    "usable_cpus": 2,
}


@pytest.fixture(scope="module")
def built():
    return skipping_networks.build(SETTINGS)


def test_the_images_timed_have_the_share_that_was_asked_for(built):
    models, (images,), fields = built
    assert fields["shares"]["skip"] == pytest.approx(0.6, abs=0.02)
    assert fields["shares"]["never"] == fields["shares"]["skip"]
    assert fields["shares"]["chain"] == 1
    assert not fields["is_least"]
    assert np.isfinite(models["skip"](images)).all()


def test_every_node_that_is_on_has_one_open_edge_out(built):
    models, batches, fields = built
    for matrix in skipping_paths.paths(models["skip"], batches, False).values():
        is_open = matrix > 0
        is_on = is_open.any(axis=1)
        is_on[:, 0] = True
        np.testing.assert_array_equal(is_open.sum(axis=2)[:, :-1], is_on[:, :-1])
        assert is_on[:, -1].all()
        # Features keep their scale along a path.
        assert (matrix[is_open] > 0.9).all() and (matrix[is_open] < 1.2).all()
    assert fields["distinct_paths"] > 1


def test_expected_share_is_that_of_the_images_routers_are_set_on():
    _, skip, _ = skipping_networks.chain_and_skip(SETTINGS)
    base = model_costs(skipping_networks.create(SETTINGS, "chain")).total
    images = skipping_networks.random_images(skipping_networks.SET_ON, 8, 1)
    for share_on in (1.0, 0.7, 0.5, 0.3, 0.1):
        skipping_paths.set_paths(skip, images, share_on)
        found = skipping_paths.paths(skip, [images], False)
        mean = skipping_networks.shares(skip, found, base).mean()
        expected = skipping_paths.expected_share(model_costs(skip), base, share_on)
        assert mean == pytest.approx(expected, abs=0.02)


def test_a_share_that_is_too_low_becomes_the_least_one():
    skip = skipping_networks.create(SETTINGS, "dynamic", "auto")
    base = model_costs(skipping_networks.create(SETTINGS, "chain")).total
    share_on, is_reached = skipping_paths.solve_share_on(model_costs(skip), base, 0.01)
    assert share_on == 1 / 6 and not is_reached


def test_edges_have_the_mean_length():
    assert skipping_paths.lengths(1.0, 6, 0) == [(1, 1.0)]
    (first, p), (second, q) = skipping_paths.lengths(0.4, 6, 0)
    assert (first, second) == (2, 3)
    assert (p, q) == pytest.approx((0.5, 0.5))
    assert skipping_paths.lengths(0.4, 6, 4) == [(2, 1.0)]


def test_the_peer_is_nearest_in_multiply_adds(built):
    models, _, fields = built
    kept = fields["peer_depths"]
    assert len(models["peer"].backbone.stages[0].blocks) == kept[0]
    assert fields["shares"]["peer"] == pytest.approx(fields["shares"]["skip"], abs=0.06)
    base = model_costs(models["chain"]).total
    assert skipping_networks.peer_depths(models["chain"], base, 1.0) == (6, 5)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"batch": 1}, {"mode": "train", "batch": 4}])
def test_a_row_has_all_contestants(changes):
    repeats = dict.fromkeys(skipping_networks.CONTESTANTS, 2)
    settings = {**SETTINGS, "spec": {"depths": (3, 2), "widths": (4, 8)}, **changes}
    row = skipping_networks.measure_times(settings, repeats, seconds=100)
    assert set(row["milliseconds"]) == set(skipping_networks.CONTESTANTS) == set(row["shares"])
    assert set(row["ratios"]) == {"skip/chain", "never/chain", "peer/chain"}
    assert row["turns"] == 2
    assert row["images"] == (8 if changes["batch"] == 1 else 4)
    json.dumps(row)


def test_a_row_ends_when_its_time_is_over():
    times = in_turns({"a": lambda: None}, {"a": 50}, seconds=0)
    assert len(times["a"]) == 1


def test_rows_resume_and_are_drawn_and_printed(monkeypatch, tmp_path):
    asked = []

    def measure_elsewhere(settings, repeats, seconds):
        share = max(settings["share"], 0.45)
        asked.append(settings["share"])
        ratio = {"median": share, "quartiles": [share, share]}
        return {
            "is_least": settings["share"] < 0.45,
            "shares": dict.fromkeys(skipping_networks.CONTESTANTS, share),
            "ratios": {f"{name}/chain": ratio for name in ("skip", "never", "peer")},
            "environment": ENVIRONMENT,
        }

    monkeypatch.setattr(skipping, "measure_elsewhere", measure_elsewhere)
    path = tmp_path / "skipping.json"
    command = ["--networks", "resnet50", "--batches", "8", "--output", str(path)]
    few = [*command, "--modes", "inference", "--shares", "0.3", "0.5", "0.4", "1"]
    skipping.main(few)
    # 0.4 is below what is reachable, which is measured once.
    assert asked == [1, 0.5, 0.4]
    skipping.main(few)
    assert asked == [1, 0.5, 0.4]
    skipping.main([*few, "--modes", "inference", "train"])
    assert asked == [1, 0.5, 0.4] * 2
    rows = measure.RowFile(path).rows
    assert len(rows) == 6
    assert path.with_suffix(".png").stat().st_size > 10_000
    table = skipping_markdown.lines(rows)
    assert len(table) == 2 + len(rows)
    assert table[-1].startswith("| `resnet50` | 8 | train | 0.45 | 0.45 (0.45 to 0.45) |")


@pytest.mark.parametrize(
    ("command", "message"),
    [(["--repeats", "0"], "--repeats must be"), (["--shares", "1.5"], "--shares must be")],
)
def test_unfit_options_are_named(command, message, capsys):
    with pytest.raises(SystemExit):
        skipping.parse(command)
    assert message in capsys.readouterr().err
