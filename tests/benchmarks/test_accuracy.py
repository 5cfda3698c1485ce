import json

import numpy as np
import pytest
from scipy import stats

from benchmarks import ablation, accuracy, accuracy_table, headroom
from train.classification import datasets
from train.classification.recipes import get_recipe

KEYS = {
    *("dataset", "split", "model", "wiring", "seed", "epochs", "overrides", "recipe_hash"),
    *("test_accuracy", "parameters", "macs", "seconds", "commit"),
}
TINY = (
    "model_overrides.depths=[1,2]",
    "model_overrides.widths=[4,8]",
    "input_shape=[8,8,3]",
    "epochs=2",
)


def rows_of(values, wiring):
    return [
        {
            "wiring": wiring,
            "seed": seed,
            "test_accuracy": value,
            "parameters": 10,
            "macs": 20,
            "seconds": 1.0,
        }
        for seed, value in values.items()
    ]


def test_runs_of_a_study_differ_in_wiring_and_seed_alone():
    jobs = accuracy.plan("cifar10")
    assert len(jobs) == 30
    assert len({job.identity["recipe_hash"] for job in jobs}) == 1
    assert len({job.workdir for job in jobs}) == 30
    assert {job.recipe.validation for job in jobs} == {0.0}
    changed = accuracy.plan("cifar10", overrides=["threshold=0.2"])
    assert changed[0].identity["recipe_hash"] != jobs[0].identity["recipe_hash"]
    held_out = accuracy.plan("cifar10", validation=True)
    assert {job.identity["split"] for job in held_out} == {"validation"}


def test_a_warm_start_begins_with_the_chain_of_its_seed():
    chains = {j.recipe.seed: j for j in accuracy.plan("cifar10") if j.recipe.wiring == "chain"}
    for job in accuracy.plan("warm_start"):
        assert job.init_from == chains[job.recipe.seed].workdir / accuracy.WEIGHTS
        assert job.recipe.init == "static"


@pytest.mark.parametrize("item", ["validation=0.3", "seed=2", "wiring=chain", "dataset=digits"])
def test_keys_that_the_benchmark_sets_are_refused(item):
    with pytest.raises(ValueError, match=f"is set by .*{item}"):
        accuracy.plan("cifar10", overrides=[item])


def test_a_document_is_not_cut_off():
    lines = accuracy_table.markdown(accuracy_table.summarize(rows_of({0: 0.7}, "chain")))
    text = "# A\n<!-- table: digits -->\nold\n<!-- end -->\nB\n"
    filled = accuracy_table.fill_in(text, {"digits": lines})
    assert "70.00" in filled
    assert "old" not in filled
    assert filled.endswith("<!-- end -->\nB\n")
    assert accuracy_table.fill_in(filled, {"digits": lines}) == filled
    with pytest.raises(ValueError, match="no <!-- end -->"):
        accuracy_table.fill_in(text.replace("<!-- end -->", ""), {"digits": lines})


def test_a_broken_line_of_rows_is_named(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n{"b"')
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2"):
        accuracy_table.read_rows(tmp_path / "rows.jsonl")


def test_a_finished_run_is_not_planned_again():
    jobs = accuracy.plan("digits")
    rows = [json.loads(json.dumps(jobs[3].identity))]
    left = accuracy.missing(jobs, rows)
    assert [job.workdir for job in left] == [j.workdir for j in jobs[:3] + jobs[4:]]


def test_differences_are_paired_by_seed():
    rows = rows_of({0: 0.70, 1: 0.74, 2: 0.75}, "dynamic") + rows_of({0: 0.69, 1: 0.71}, "chain")
    dynamic, chain = accuracy_table.summarize(rows)
    assert dynamic["mean"] == pytest.approx(73)
    count, mean, half = dynamic["minus"]["chain"]
    assert (count, mean) == (2, pytest.approx(2))
    assert half == pytest.approx(stats.t.ppf(0.975, 1) * np.std([1, 3], ddof=1) / np.sqrt(2))
    assert chain["minus"]["dynamic"][1] == pytest.approx(-2)
    line = accuracy_table.markdown([dynamic, chain])[2]
    assert "+2.00 [-10.71, +14.71] (2)" in line


@pytest.mark.slow
def test_a_study_runs_and_goes_on(tmp_path, capsys):
    command = ["--study", "digits", "--seed", "0", "--wiring", "dynamic", "--jobs", "2"]
    command += [part for item in TINY for part in ("--set", item)]
    command += ["--workdir", str(tmp_path), "--rows", str(tmp_path / "rows.jsonl")]
    accuracy.main([*command, "--plot", str(tmp_path / "plot.png")])
    (row,) = accuracy_table.read_rows(tmp_path / "rows.jsonl")
    assert KEYS <= set(row)
    assert 0.1 < row["test_accuracy"] <= 1
    assert (tmp_path / "plot.png").stat().st_size > 1000
    capsys.readouterr()
    accuracy.main(command)
    assert "1 runs, 0 to do" in capsys.readouterr().out
    assert accuracy_table.read_rows(tmp_path / "rows.jsonl") == [row]

    (job,) = (
        job
        for job in accuracy.plan("digits", overrides=TINY, workdir=tmp_path)
        if (job.recipe.wiring, job.recipe.seed) == ("dynamic", 0)
    )
    found = ablation.ablate(job, tmp_path / f"digits-{accuracy.IMAGES}")
    assert found["accuracy"]["own"] == [pytest.approx(row["test_accuracy"])]
    assert found["connectivity"]["distinct_paths"] == row["distinct_paths"]
    assert len(found["accuracy"]["other_image"]) == ablation.DRAWS
    assert len(ablation.table([found])) == 2 + 5
    room = headroom.measure(job, tmp_path / f"digits-{accuracy.IMAGES}")
    assert room["accuracy"]["own"] == pytest.approx(found["accuracy"]["own"][0], abs=0.01)
    assert room["loss"]["oracle"] <= room["loss"]["own"]
    assert len(headroom.table([room])) == 2 + 4 + 3


def test_a_missing_document_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"benchmarks\.ablation: .*nowhere\.md"):
        ablation.main(["--workdir", str(tmp_path), "--document", str(tmp_path / "nowhere.md")])


def test_substitutes_are_what_their_names_say(rng):
    matrices = np.zeros((6, 3, 3))
    matrices[:, 0, 1] = np.arange(1, 7)
    matrices[:, 1, 2] = 1
    matrices[4:, 0, 2] = 3
    labels = np.array([0, 0, 0, 1, 1, 1])
    found = {}
    for name, given in ablation.substitutes({"stage1": matrices}, labels, rng):
        found.setdefault(name, []).append(given["stage1"])
    for given in found["other_image"]:
        assert sorted(given[:, 0, 1]) == [1, 2, 3, 4, 5, 6]
    for given in found["other_image_of_class"]:
        assert sorted(given[:3, 0, 1]) == [1, 2, 3]
    np.testing.assert_allclose(found["mean"][0][:, 0, 1], 3.5)
    np.testing.assert_allclose(found["mean"][0][:, 0, 2], 1)
    np.testing.assert_allclose(found["most_frequent_path"][0][:, 0, 1], 2.5)
    np.testing.assert_allclose(found["most_frequent_path"][0][:, 0, 2], 0)


def test_decoded_images_are_kept_with_their_labels(tmp_path):
    recipe = get_recipe("digits_resnet20", ["validation=0.25"])
    accuracy.save_images(recipe, None, tmp_path / "images.npz")
    loaded = accuracy.load_images(recipe, tmp_path / "images.npz")
    with pytest.raises(ValueError, match="holds the images of 'digits None'"):
        accuracy.save_images(recipe, "elsewhere", tmp_path / "images.npz")
    direct = datasets.load_data(recipe)
    for ours, theirs in ((loaded.train, direct.train), (loaded.test, direct.test)):
        np.testing.assert_array_equal(ours.images, theirs.images)
        np.testing.assert_array_equal(ours.labels, theirs.labels)


def test_committed_rows_are_whole_and_of_one_recipe_a_study():
    rows = accuracy_table.read_rows(accuracy.ROWS)
    if not rows:
        pytest.skip(f"no rows in {accuracy.ROWS}")
    for row in rows:
        assert KEYS <= set(row)
    keys = [accuracy._key(row) for row in rows]
    assert len(set(keys)) == len(keys)


def test_the_documents_tables_are_those_of_the_committed_rows():
    groups = accuracy.studies_of(accuracy_table.read_rows(accuracy.ROWS))
    if not groups:
        pytest.skip(f"no rows in {accuracy.ROWS}")
    tables = {n: accuracy_table.markdown(accuracy_table.summarize(r)) for n, r in groups.items()}
    for module, name, wiring in (
        (ablation, "ablation", "dynamic"),
        (headroom, "headroom", "learned"),
    ):
        rows = accuracy_table.read_rows(module.OUTPUT)
        if rows := [row for row in rows if row["wiring"] == wiring]:
            tables[name] = module.table(rows)
    text = (accuracy.ROOT / "docs" / "results.md").read_text()
    assert accuracy_table.fill_in(text, tables) == text
    for name in tables:
        assert f"<!-- table: {name} -->" in text
