import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LinearRegression

from benchmarks import (
    accuracy_runs,
    accuracy_studies,
    accuracy_table,
    measure,
    pareto,
    pareto_cascade,
    pareto_headroom,
    pareto_images,
    pareto_table,
)
from train.classification.model import create_model

RUNS = (
    pareto.Run("resnet56_cifar", "chain", None, 2, None),
    pareto.Run("resnet32_cifar", "chain", None, 1, None),
    pareto.Run("resnet56_cifar", "path", 0.8, 1, "resnet56_cifar"),
    pareto.Run("resnet32_cifar", "chain", None, 1, "resnet56_cifar"),
)
TINY = (
    "dataset=digits",
    "model_overrides.depths=[3,3]",
    "model_overrides.widths=[4,8]",
    "input_shape=[8,8,3]",
    "macs_fall=0.1",
)


def run_here(jobs, images, rows, parallel):
    """As `run_jobs`, without a process for each run."""
    for job in jobs:
        row = {**accuracy_runs.train_once(job, images), "commit": "of now"}
        accuracy_table.append_row(rows, row)
        yield row


@pytest.mark.slow
@pytest.mark.xdist_group("pareto")
def test_it_runs_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pareto, "RUNS", RUNS)
    monkeypatch.setattr(pareto, "run_jobs", run_here)
    for module in (pareto_headroom, pareto_images):
        monkeypatch.setattr(module, "DECIDING", 0.8)
    weights = tmp_path / "published.weights.h5"
    jobs = pareto.plan(weights, 1, overrides=TINY, workdir=tmp_path / "runs")
    assert len(jobs) == 5
    create_model(jobs[0].recipe, 10).save_weights(weights)
    command = ["--weights", str(weights), "--epochs", "1", "--workdir", str(tmp_path / "runs")]
    command += [part for item in TINY for part in ("--set", item)]
    command += ["--results", str(tmp_path)]

    def rows_of(measure=None):
        return accuracy_table.read_rows(pareto.rows_file(tmp_path, measure))

    pareto.main([*command, "--only", "3", "--jobs", "2"])
    rows = rows_of()
    assert [(r["wiring"], r["seed"]) for r in rows[:2]] == [("chain", 0)] * 2
    path = rows[2]
    assert path["wiring"] == "path" and path["share_of_macs"] <= 1
    assert {"threshold", "distinct_paths", "curve", "static_macs", "commit"} <= set(path)
    capsys.readouterr()

    pareto.main(
        [*command, "--only", "3", "--measure", "times", "--plot", str(tmp_path / "plot.png")]
    )
    assert {"1", "128"} == set(rows_of("times")[0]["time"])
    assert rows_of() == rows
    pareto.main([*command, "--only", "3", "--measure", "images"])
    (found,) = rows_of("images")
    assert found["accuracy"]["own"] == [pytest.approx(path["test_accuracy"])]
    assert found["share_of_macs"] == pytest.approx(path["share_of_macs"])
    assert len(found["accuracy"]["other_class"]) == len(found["changed"]["other_image"]) == 5
    assert (
        "| `resnet56_cifar` | `path` | `resnet56_cifar` too | 0.8 | 1 |" in capsys.readouterr().out
    )
    pareto.main([*command, "--only", "3", "--measure", "headroom"])
    (found,) = rows_of("headroom")
    assert found["swaps"]["own"]["0"]["accuracy"] == pytest.approx(path["test_accuracy"])
    assert found["swaps"]["oracle"]["1"]["loss"] < found["swaps"]["own"]["0"]["loss"]
    assert "| `path` | shared | 1 |" in capsys.readouterr().out
    pareto.main([*command, "--only", "3", "--measure", "cascade"])
    *_, found = rows_of("cascade")
    assert found["looks"][0]["mean"] == pytest.approx(path["test_accuracy"])
    pareto.main([*command, "--only", "3", "--table", "--picture", str(tmp_path / "images.png")])
    for name in ("plot.png", "images.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.format == "PNG"
    pareto.main([*command, "--only", "3"])
    assert "3 runs, 0 to do" in capsys.readouterr().out


def test_what_a_run_learns_from_comes_before_it_wherever_it_lies(tmp_path):
    jobs = pareto.plan("a.npz", 8, workdir=tmp_path)
    elsewhere = pareto.plan("a.npz", 8, workdir=tmp_path / "other")
    assert [j.identity for j in jobs] == [j.identity for j in elsewhere]
    assert len({accuracy_studies.run_key(job.identity) for job in jobs}) == len(jobs)
    seen = set()
    for part in pareto._in_order(jobs):
        for job in part:
            source = job.recipe.distill_from
            assert (source is None) == (job.identity["teacher"] is None)
            assert source is not None or job.recipe.wiring == "chain"
            assert source is None or source in seen
        seen |= {str(job.workdir / accuracy_studies.WEIGHTS) for job in part}


def row(model, wiring, target, seed, accuracy, teacher=None, **fields):
    identity = {"model": model, "wiring": wiring, "macs_target": target, "seed": seed}
    identity["teacher"] = teacher or (None if target is None else model)
    return {**identity, "test_accuracy": accuracy, "macs": 100, **fields}


def test_differences_are_paired_and_shares_are_of_the_static_resnet56():
    budget = {"share_of_macs": 0.5, "static_macs": 100, "distinct_paths": 7.0, "curve": []}
    rows = [
        row("resnet56_cifar", "chain", None, 0, 0.90),
        row("resnet32_cifar", "chain", None, 0, 0.87, macs=55),
        row("resnet32_cifar", "chain", None, 1, 0.88, macs=55),
        row("resnet32_cifar", "chain", None, 1, 0.89, "resnet56_cifar", macs=55),
        row("resnet56_cifar", "path", 0.5, 0, 0.88, **budget),
        row("resnet56_cifar", "path", 0.5, 1, 0.895, **budget),
        row("resnet56_cifar", "learned_path", 0.5, 1, 0.86, **budget),
    ]
    times = [{**r, "time": {"1": 0.5 + 0.1 * r["seed"], "128": 0.4}} for r in rows if r["seed"]]
    table = {r["key"]: r for r in pareto_table.summarize(rows, times)}
    assert [r["share"] for r in table.values()] == [1.0, 0.55, 0.55, 0.5, 0.5]
    paths = table["resnet56_cifar", "path", 0.5, "resnet56_cifar"]
    count, mean, half = paths["minus"]["smaller"]
    assert (count, mean) == (2, pytest.approx(1.25))
    assert half == pytest.approx(12.706 * 0.25, rel=1e-3)
    assert paths["minus"]["taught"] == (1, pytest.approx(0.5), None)
    assert paths["minus"]["control"] == (1, pytest.approx(3.5), None)
    assert paths["time"] == {"1": 0.6, "128": 0.4}
    assert "| +1.25 [-1.93, +4.43] (2) | +0.50 (1) | +3.50 (1) | 0.60 | 0.40 |" in "\n".join(
        pareto_table.markdown(list(table.values()))
    )
    assert pareto_table.summarize(rows[1:]) == []


def test_rows_of_other_settings_are_left_out(tmp_path):
    jobs = pareto.plan("a.npz", pareto.EPOCHS, workdir=tmp_path)
    other = pareto.plan("a.npz", pareto.EPOCHS, validation=True, workdir=tmp_path)
    for job, accuracy in ((jobs[0], 0.9), (other[0], 0.5)):
        row = {**job.identity, "test_accuracy": accuracy, "macs": 100}
        accuracy_table.append_row(tmp_path / "pareto.jsonl", row)
    (found,) = pareto.tables_of(jobs, tmp_path)[1]
    assert (found["accuracy"], found["seeds"]) == (90.0, 1)
    with pytest.raises(SystemExit, match="--document is for all runs"):
        pareto.main(["--table", "--validation", "--document", str(tmp_path / "results.md")])


def test_a_run_is_left_out_where_what_it_learns_from_is_not_there(tmp_path):
    jobs = pareto.plan("a.npz", 8, workdir=tmp_path)
    assert {job.recipe.wiring for job in jobs if pareto._can_start(job)} == {"chain"}


def test_the_document_is_that_of_the_committed_rows(tmp_path):
    if not pareto.rows_file(pareto.RESULTS).exists():
        pytest.skip(f"no rows in {pareto.RESULTS}")
    jobs = pareto.plan("cifar_resnets.npz", pareto.EPOCHS, workdir=tmp_path)
    tables, _ = pareto.tables_of(jobs, pareto.RESULTS)
    text = (measure.ROOT / "docs" / "results.md").read_text()
    for name in tables:
        assert f"<!-- table: {name} -->" in text
    assert accuracy_table.fill_in(text, tables) == text


def test_paths_are_swapped_between_classes():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(3), [6, 4, 2]))
    order = pareto_images.of_another_class(labels, np.random.default_rng(1))
    assert sorted(order) == list(range(12))
    assert (labels[order] != labels).all()
    with pytest.raises(ValueError, match=r"more than half of the images\. Received: 6 of 9"):
        pareto_images.of_another_class(np.repeat([0, 1], [6, 3]), np.random.default_rng(1))


def test_what_a_share_says_of_an_image():
    labels = np.array([0, 0, 1, 1])
    logits = np.array([[9.0, 0], [1, 0], [0, 0.5], [0.2, 0]])  # ever more in doubt, the last wrong
    shares = np.array([0.3, 0.4, 0.5, 0.9])
    found = pareto_images.doubt_figures(shares, logits, labels)
    assert found["loss"] == pytest.approx(1)
    assert found["error"] == pytest.approx(0.7746, abs=1e-4)
    assert pareto_images.doubt_figures(np.ones(4), logits, labels)["loss"] is None
    parts = pareto_images.quarters(np.arange(8) / 8, {"own": np.arange(8) < 3})
    assert [part["own"] for part in parts] == [1, 0.5, 0, 0]
    assert parts[0]["share"] == 1 / 16


def test_the_part_of_the_variance_between_classes():
    labels = np.repeat([0, 1], 50)
    decided = labels[:, None] == [0, 1]
    assert pareto_images.between_classes(decided, labels) == pytest.approx(1)
    noise = np.tile([[0.0], [1.0]], (50, 1))
    assert pareto_images.between_classes(noise, labels) == pytest.approx(0)
    assert pareto_images.between_classes(np.ones((100, 2)), labels) is None


def test_blocks_are_swapped_by_their_gain():
    taken = np.array([[True, True, False, False], [False, True, False, False]])
    gains = np.array([[0.1, 0.2, 0.3, 0.4], [0.5, -1, 0.3, 0.1]])
    one = pareto_headroom.swap(taken, gains, 1)
    assert one.tolist() == [[True, False, False, True], [True, False, False, False]]
    two = pareto_headroom.swap(taken, gains, 2)
    assert two.tolist() == [[False, False, True, True], [True, False, False, False]]


def test_a_gain_is_predicted_for_images_that_were_not_fitted_on():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 3))
    gains = np.stack([features @ [1.0, -2, 0], rng.normal(size=400)], axis=1)
    folds = np.arange(400) % 2
    found = pareto_headroom.predicted(gains, [features] * 2, folds, LinearRegression)
    np.testing.assert_allclose(found[:, 0], gains[:, 0], atol=1e-8)
    assert abs(np.corrcoef(found[:, 1], gains[:, 1])[0, 1]) < 0.2


def test_cascades_are_means_over_the_seeds_of_a_run():
    looks = [[{"share_of_macs": x, "mean": y}] for x, y in ((0.5, 0.8), (0.7, 0.9))]
    rows = [{**row("resnet56_cifar", "path", 0.55, s, 0), "looks": looks[s]} for s in (0, 1)]
    key = "resnet56_cifar", "path", 0.55, "resnet56_cifar"
    assert pareto_table.cascades(rows) == {key: [(pytest.approx(0.6), pytest.approx(85.0))]}


def test_the_images_in_doubt_are_asked_twice(monkeypatch):
    monkeypatch.setattr(pareto_cascade, "AGAIN", (0.0, 0.5))
    first = np.array([[0.9, 0.1], [0.45, 0.55], [0.6, 0.4], [0.2, 0.8]])
    second = np.array([[0.0, 1], [0.6, 0.4], [0.45, 0.55], [1, 0]])
    labels = np.array([0, 0, 1, 1])
    none, half = pareto_cascade.looks(first, second, np.full(4, 0.4), labels)
    assert none == {"again": 0.0, "share_of_macs": 0.4, "mean": 0.5, "static": 0.5}
    # The second image comes right, and the third where the static network answers alone.
    assert half == {"again": 0.5, "share_of_macs": 0.9, "mean": 0.75, "static": 1.0}
