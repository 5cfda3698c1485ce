import pytest
from PIL import Image

from benchmarks import (
    ablation,
    accuracy,
    accuracy_runs,
    accuracy_studies,
    accuracy_table,
    headroom,
    measure,
)

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


@pytest.mark.slow
def test_a_study_runs_and_goes_on(tmp_path, capsys):
    command = ["--study", "digits", "--seed", "0", "--wiring", "dynamic", "--jobs", "2"]
    command += [part for item in TINY for part in ("--set", item)]
    command += ["--workdir", str(tmp_path), "--rows", str(tmp_path / "rows.jsonl")]
    accuracy.main([*command, "--plot", str(tmp_path / "plot.png")])
    (row,) = accuracy_table.read_rows(tmp_path / "rows.jsonl")
    assert KEYS <= set(row)
    assert 0.1 < row["test_accuracy"] <= 1
    with Image.open(tmp_path / "plot.png") as plot:
        assert plot.format == "PNG"
    capsys.readouterr()
    accuracy.main(command)
    assert "1 runs, 0 to do" in capsys.readouterr().out
    assert accuracy_table.read_rows(tmp_path / "rows.jsonl") == [row]

    (job,) = (
        job
        for job in accuracy_studies.plan("digits", overrides=TINY, workdir=tmp_path)
        if (job.recipe.wiring, job.recipe.seed) == ("dynamic", 0)
    )
    images = accuracy_runs.images_file(tmp_path, "digits")
    found = ablation.ablate(job, images)
    assert found["accuracy"]["own"] == [pytest.approx(row["test_accuracy"])]
    assert found["connectivity"]["distinct_paths"] == row["distinct_paths"]
    assert len(found["accuracy"]["other_image"]) == ablation.DRAWS
    assert len(ablation.table([found])) == 2 + 5
    room = headroom.measure(job, images)
    assert room["accuracy"]["own"] == pytest.approx(found["accuracy"]["own"][0], abs=0.01)
    assert room["loss"]["oracle"] <= room["loss"]["own"]
    assert len(headroom.table([room])) == 2 + 4 + 3


def test_committed_rows_are_whole_and_of_one_recipe_a_study():
    rows = accuracy_table.read_rows(accuracy.ROWS)
    if not rows:
        pytest.skip(f"no rows in {accuracy.ROWS}")
    for row in rows:
        assert KEYS <= set(row)
    keys = [accuracy_studies.run_key(row) for row in rows]
    assert len(set(keys)) == len(keys)


def test_the_documents_tables_are_those_of_the_committed_rows():
    groups = accuracy_studies.studies_of(accuracy_table.read_rows(accuracy.ROWS))
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
    text = (measure.ROOT / "docs" / "results.md").read_text()
    assert accuracy_table.fill_in(text, tables) == text
    for name in tables:
        assert f"<!-- table: {name} -->" in text
