"""What a call of `train` finds in its workdir."""

import dataclasses
import io
import types

import numpy as np
import pytest
from rich.console import Console
from train_helpers import TINY

from train import session
from train.classification import datasets
from train.classification.recipes import get_recipe
from train.classification.run import train

pytestmark = pytest.mark.xdist_group("classified")


def test_a_run_needs_a_folder():
    with pytest.raises(ValueError, match=r"--workdir must be the name of a folder"):
        train(get_recipe("digits_resnet20", TINY), "")


def test_the_same_command_again_reports_the_finished_run(classified, capsys):
    recipe, workdir, results = classified
    assert train(recipe, workdir) == results
    assert "test_accuracy" in capsys.readouterr().out


def test_another_recipe_and_other_data_in_the_same_workdir_are_refused(classified, monkeypatch):
    recipe, workdir, _ = classified
    with pytest.raises(ValueError, match=r'another recipe.*wiring: "dynamic" there, "chain" here'):
        train(dataclasses.replace(recipe, wiring="chain"), workdir)
    data = datasets.load_data(recipe)
    fewer = dataclasses.replace(data, test=data.test.take(np.arange(100)))
    monkeypatch.setattr(datasets, "load_data", lambda *_: fewer)
    with pytest.raises(ValueError, match=r'other data.*"test_images": 360.*"test_images": 100'):
        train(recipe, workdir)


def test_a_file_is_told_how_far_the_run_is_once_a_minute(monkeypatch):
    clock = iter([100.0, 100.0, 130.0, 159.0, 161.0, 161.0])
    monkeypatch.setattr(session, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    for terminal in (False, True):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=80)
        with session.epoch_progress(console) as move:
            move(0, 1200)
            for step in (1, 2, 3, 4):
                move(step, line=f"step {step}/1200, loss 1.0000, 0:20:00 left")
        said = [x for x in console.file.getvalue().splitlines() if x.startswith("step ")]
        assert [x.split("/")[0] for x in said] == ([] if terminal else ["step 1", "step 4"])
