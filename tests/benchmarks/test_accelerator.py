"""The accelerator's benchmark: what it does when something fails, ends or is out of time."""

import json
import pathlib
import re
import subprocess
import sys
import time

import pytest

import dgnet_keras as dg
from benchmarks import accelerator
from benchmarks.accelerator import __main__ as command
from benchmarks.accelerator import plan, report
from benchmarks.measure import RowFile
from dgnet_keras.backbones import FAMILIES

ROOT = pathlib.Path(__file__).parents[2]

# A process that sends a row for each of its settings, but ends at "crash" and waits at "hang".
FAKE = """
import json, sys, time
from benchmarks.accelerator.workers import send
for settings in json.loads(sys.argv[1]):
    if settings["model"] == "crash":
        sys.exit("out of luck")
    if settings["model"] == "hang":
        time.sleep(60)
    send({"settings": settings, "repeats": {}, "times": 1})
"""


def row(model, **settings):
    common = {"part": "networks", "mode": "train", "batch": 2, "dtype": "float32", "xla": False}
    return {**common, "model": model, "share": 1.0, **settings}


@pytest.fixture
def measure(tmp_path):
    """A function of models' names that measures them with `FAKE`; the rows by model."""

    def run(*models, seconds=30):
        rows = command.Rows(tmp_path / "rows.json")
        fake = [sys.executable, "-c", FAKE]
        settings = [row(model) for model in models]
        command.measure(fake, settings, rows, tmp_path / "log", time.monotonic() + seconds)
        return {r["settings"]["model"]: r for r in RowFile(tmp_path / "rows.json").rows}

    return run


def test_a_process_that_dies_costs_its_row_alone(measure):
    rows = measure("a", "crash", "b")
    assert [name for name, r in rows.items() if "error" in r] == ["crash"]
    assert "exit code 1: out of luck" in rows["crash"]["error"]
    assert list(rows) == ["a", "crash", "b"]


def test_out_of_time_rows_that_are_there_stay_and_none_is_called_failed(measure):
    start = time.monotonic()
    assert list(measure("a", "hang", "b", seconds=4)) == ["a"]
    assert time.monotonic() - start < 30


def test_what_is_there_is_not_measured_again_and_what_failed_is(measure, tmp_path):
    measure("a", "crash")
    path = tmp_path / "rows.json"
    path.write_text(path.read_text().replace('"times": 1', '"times": 7'))
    rows = measure("a", "b")
    assert (rows["a"]["times"], rows["b"]["times"]) == (7, 1)
    assert command.missing([row("a"), row("crash"), row("c")], RowFile(path)) == [
        row("crash"),
        row("c"),
    ]


@pytest.mark.parametrize("missing", ["pytest", "xdist"])
def test_tests_that_could_not_run_have_failed(missing, tmp_path, monkeypatch):
    (tmp_path / f"{missing}.py").write_text("raise ImportError('not installed')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    rows = command.Rows(tmp_path / "rows.json")
    assert command.run_tests(["f.py"], rows, tmp_path / "log", time.monotonic() + 60)
    (failure,) = report.failures(rows.rows)
    assert failure.startswith("pytest: it ended with exit code")


def test_the_report_names_what_failed_and_what_is_left():
    rows = [
        {"settings": row("x", xla=True), "repeats": {}, "error": "Boom"},
        {"settings": {"part": "tests", "test": "f.py::g"}, "outcome": "failed", "error": "1 != 2"},
    ]
    lines = report.report(rows, ["y"])
    assert "2 failed:" in lines
    assert "- x, train, batch 2, float32, XLA: Boom" in lines
    assert "- f.py::g: 1 != 2" in lines
    assert "| `f.py` | 0 | 1 | 0 |" in lines
    assert lines[-1].startswith("Left, 1: y.")


def test_rows_of_another_commit_are_not_mixed_in(tmp_path):
    path = tmp_path / "rows.json"
    old = {"settings": {"part": "tests", "test": "f.py::g"}, "repeats": {}, "commit": "0123"}
    path.write_text(json.dumps([old]))
    with pytest.raises(SystemExit, match=r"was measured at commit 0123.*name another file"):
        command.main(["--output", str(path)])


def test_the_plan_has_every_family_and_tests_that_are_there():
    for family in FAMILIES:
        assert sum(name in dg.list_variants(family.family) for name in plan.NETWORKS) == 1
    assert {share for shares in plan.SHARES.values() for share in shares} >= {1.0, 0.8, 0.5, 0.3}
    settings = [s for g in plan.plan() if g.kind == "networks" for s in g.settings]
    assert {s["batch"] for s in settings if s["mode"] == "inference"} == {1, 32, 256}
    assert {s["xla"] for s in settings} == {False, True}
    assert len({json.dumps(s) for s in settings}) == len(settings)
    for file in plan.TESTS:
        assert (ROOT / file).exists(), file


def test_the_document_has_the_rows_of_a_cpu():
    rows = RowFile(ROOT / "benchmarks" / "results" / "clock_onednn_avx512.json").rows
    document = (ROOT / "docs" / "performance.md").read_text()
    assert "\n".join(report.networks_table(rows)) in document


@pytest.mark.slow
def test_small_runs_every_part_on_a_cpu_and_then_has_nothing_left(tmp_path):
    path = tmp_path / "rows.json"
    words = [sys.executable, "-m", accelerator.__name__, "--output", path, "--small"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "Everything was measured."
    rows = RowFile(path).rows
    assert {r["settings"]["part"] for r in rows} == {"tests", "networks", "input"}
    passed = [r for r in rows if r.get("outcome") == "passed"]
    assert len(passed) > 20
    for r in report.of_part(rows, "networks"):
        assert r["turns"] > 0
        assert set(r["first_step_seconds"]) == set(r["milliseconds"])
        assert ("dynamic" in r["milliseconds"]) == (r["settings"]["share"] == 1)
        assert set(r["milliseconds"]) >= {"chain", "path"}
        assert ("path_all" in r["milliseconds"]) == (r["settings"]["mode"] == "train")
        assert abs(r["measured_share"] - r["settings"]["share"]) < 0.15
    assert re.search(r"pipeline gives \d+ images/s", done.stdout)
    start, before = time.monotonic(), path.read_text()
    again = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert again.returncode == 0
    assert path.read_text() == before
    assert time.monotonic() - start < 20
