import numpy as np
import pytest
from scipy import stats

from benchmarks import accuracy_table


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


def test_the_plot_joins_the_runs_of_a_seed_and_names_the_means():
    rows = rows_of({0: 0.70, 1: 0.74}, "dynamic") + rows_of({0: 0.69}, "chain")
    (axis,) = accuracy_table.plot({"digits": rows}).axes
    runs = [list(line.get_ydata()) for line in axis.lines]
    np.testing.assert_allclose(np.concatenate(runs), [70, 69, 74])
    assert [len(run) for run in runs] == [2, 1]
    assert [text.get_text() for text in axis.texts] == ["72.00", "69.00"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["dynamic", "chain"]
    assert axis.get_title() == "digits"
