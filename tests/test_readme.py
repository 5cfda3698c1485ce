"""Every Python snippet of the README runs as written, one after the other."""

import pathlib
import re

import catalog
import numpy as np
import pytest

import dgnet_keras as dg

README = pathlib.Path(__file__).parents[1] / "README.md"


@pytest.mark.slow
def test_the_snippets_run(tmp_path, monkeypatch, rng):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dg.DGResNet, "variants", dict(dg.DGResNet.variants))
    static = dg.create("resnet50", num_classes=10, wiring="chain")
    static.save_weights("static.weights.h5")
    catalog.write_timm_file(dg.create("resnet50", wiring="chain"), "resnet50.safetensors")
    names = {
        "images": rng.integers(0, 256, (8, 32, 32, 3), "uint8"),
        "labels": np.arange(8) % 10,
        "static": static,
    }
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(snippets) >= 7
    for snippet in snippets:
        if "export_saved_model" in snippet:  # the reader's model has ten classes
            names["model"] = static
        exec(snippet, names)
    assert (tmp_path / "adjacency.png").exists()
    assert (tmp_path / "served" / "digits" / "1" / "saved_model.pb").exists()
