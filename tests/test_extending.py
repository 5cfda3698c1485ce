"""The Python of docs/extending.md runs as it stands, from top to bottom."""

import pathlib
import re

import pytest

import dgnet_keras as dg
from dgnet_keras.layers import gates, wiring

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "extending.md"


@pytest.mark.slow
def test_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(wiring, "_fixed", dict(wiring._fixed))
    monkeypatch.setattr(gates, "_registered", dict(gates._registered))
    monkeypatch.setattr(dg.DGResNet, "variants", dict(dg.DGResNet.variants))
    snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(snippets) >= 7
    names = {"__name__": "extending"}
    for snippet in snippets:
        exec(compile(snippet, PAGE.name, "exec"), names)
    assert names["logits"].shape == (8, 10)
    assert names["outputs"]["features"].shape == (2, 32, 32, 16)
