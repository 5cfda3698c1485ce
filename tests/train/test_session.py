"""What a call of `train` finds in its workdir."""

import dataclasses

import numpy as np
import pytest
from train_helpers import TINY

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
