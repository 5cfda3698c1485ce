"""The picture of a detection run's history."""

from train.detection import report


def test_history_is_drawn(tmp_path):
    rows = [{"epoch": k, "AP": 0.1 * k, "AP50": 0.2 * k, "train_training_loss": 1 / k}
            for k in (1, 2)]  # fmt: skip
    report.plot_history(rows, tmp_path / "h.png")
    assert (tmp_path / "h.png").stat().st_size > 1000
