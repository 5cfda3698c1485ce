"""Every Python snippet of the README runs as written, one after the other."""

import pathlib
import re

import numpy as np
import pytest

import dgnet_keras as dg

README = pathlib.Path(__file__).parents[1] / "README.md"


def timm_file(model, path):
    """Writes the model's weights as timm would."""
    from safetensors.numpy import save_file

    arrays = {}
    for variable in model.weights:
        value = variable.numpy()
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        name = dg.convert.timm_name(variable.path, model.backbone.timm_names)
        arrays[name] = np.ascontiguousarray(value)
    save_file(arrays, path)


@pytest.mark.slow
def test_the_snippets_run(tmp_path, monkeypatch, rng):
    monkeypatch.chdir(tmp_path)
    static = dg.create("resnet50", num_classes=10, wiring="chain")
    static.save_weights("static.weights.h5")
    timm_file(dg.create("resnet50", wiring="chain"), "resnet50.safetensors")
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
