"""The picture of a detection run's history, and the table of its classes."""

import io

from rich.console import Console

from train.detection import report


def test_history_is_drawn(tmp_path):
    rows = [{"epoch": k, "AP": 0.1 * k, "AP50": 0.2 * k, "train_training_loss": 1 / k}
            for k in (1, 2)]  # fmt: skip
    report.plot_history(rows, tmp_path / "h.png")
    assert (tmp_path / "h.png").stat().st_size > 1000


def test_classes_stand_in_a_table_the_best_first():
    rows = [
        {"name": "a class without objects", "objects": 0, "AP": -1.0, "AP50": -1.0},
        {"name": "cat", "objects": 3, "AP": 0.25, "AP50": 0.5},
        {"name": "x" * 90, "objects": 1200, "AP": 1.0, "AP50": 1.0},
    ]
    console = Console(file=io.StringIO(), width=60)
    console.print(report.classes_table(rows))
    shown = console.file.getvalue()
    assert shown.count("x") == 90  # a long name is wrapped, not cut
    cells = [line.replace("│", " ").split() for line in shown.splitlines()]
    assert ["cat", "3", "0.2500", "0.5000"] in cells
    assert [c[-3:] for c in cells if c and c[-2:] in (["1.0000"] * 2, ["-", "-"])] == [
        ["1,200", "1.0000", "1.0000"],
        ["0", "-", "-"],
    ]
