"""A finished run of a tiny classifier, which several files look at."""

import pytest


@pytest.fixture(scope="session")
def classified(tmp_path_factory):
    """Recipe, workdir and results. Tests that use it are of the xdist group `classified`."""
    from train_helpers import TINY

    from train.classification.recipes import get_recipe
    from train.classification.run import train

    recipe = get_recipe("digits_resnet20", [*TINY, "mean=[0.25]", "std=[0.4]"])
    workdir = tmp_path_factory.mktemp("classified")
    return recipe, workdir, train(recipe, workdir)
