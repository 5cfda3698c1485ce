"""The Python of the README and of the guides runs as written, each page from top to bottom."""

import dataclasses
import pathlib
import re

import catalog
import numpy as np
import pytest
from PIL import Image

import dgnet_keras as dg
from benchmarks.serving.model_server import ModelServer
from dgnet_keras.backbones.resnet import ResNetSpec

pytestmark = pytest.mark.xdist_group("readme")  # the reader's model is trained once
ROOT = pathlib.Path(__file__).parents[1]
SMALL = ResNetSpec(depths=(1, 2, 1, 1), widths=(4, 8, 8, 8))
TWO_STAGES = dataclasses.replace(
    dg.DGResNet.variants["resnet20_cifar"], depths=(3, 2), widths=(16, 32)
)
SERVED = 'model_config_list {{ config {{ name: "digits" base_path: "{}/served/digits" }} }}'


def snippets(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


def run(page, given):
    """Runs a page's Python from top to bottom, and returns the names that it leaves."""
    names = dict(given)
    for snippet in snippets(page):
        exec(compile(snippet, page, "exec"), names)
    return names


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """What somebody has at hand who has followed the README, in the folder where they work.

    The networks are small ones there, so that a page builds several in no time.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("reader"))
        patch.setitem(dg.DGResNet.variants, "resnet50", SMALL)
        patch.setitem(dg.DGResNet.variants, "resnet20_cifar", TWO_STAGES)
        given = {
            "images": np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), "uint8"),
            "labels": np.arange(8) % 10,
            "static": dg.create("resnet50", num_classes=10, wiring="chain"),
        }
        given["static"].save_weights("static.weights.h5")
        catalog.write_timm_file(dg.create("resnet50", wiring="chain"), "resnet50.safetensors")
        yield {**given, **run("README.md", given)}


@pytest.mark.slow
def test_the_readme_classifies_and_draws(reader):
    assert reader["classes"].shape == (8,)
    assert reader["adjacency"]["stage1"].shape == (8, 4, 4)
    assert pathlib.Path("graph.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["models", "training", "connectivity"])
def test_the_guide_runs(reader, name):
    given = {key: reader[key] for key in ("images", "labels", "static", "model")}
    assert len(run(f"docs/{name}.md", given)) > len(given)


@pytest.mark.slow
def test_the_guide_to_paths_runs(monkeypatch):
    monkeypatch.setitem(dg.DGResNet.variants, "resnet56_cifar", TWO_STAGES)
    static = dg.create("resnet56_cifar", num_classes=10, input_shape=(32, 32, 3), wiring="chain")
    given = {"static": static, "x": catalog.images(64, 32), "y": np.arange(64) % 10}
    names = run("docs/paths.md", given)
    assert names["smaller"].wiring == "chain"


@pytest.mark.slow
def test_the_guide_to_serving_exports_asks_and_loads(reader):
    names = {key: reader[key] for key in ("images", "model")}
    for file in ("a.jpg", "b.png"):
        Image.fromarray(names["images"][0]).save(file)
    export, ask, load = snippets("docs/serving.md")
    exec(export, names)
    pathlib.Path("models.config").write_text(SERVED.format(pathlib.Path.cwd()))
    with ModelServer("models.config") as server:
        exec(ask.replace("http://localhost:8501", server.rest_url), names)
    assert names["answer"]["probabilities"].shape == (2, 10)
    exec(load, names)


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert max(len(line) for line in lines if not line.startswith("|")) <= 120
