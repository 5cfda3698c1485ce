"""Strategies by name; what they compute is in test_distribute.py."""

import re
import warnings

import pytest

from train.strategies import make_strategy


def test_a_broken_cluster_is_named(monkeypatch):
    for text in ("{cluster: 1}", '{"cluster": 3}', "[]", '{"task": {"type": "worker"}}'):
        monkeypatch.setenv("TF_CONFIG", text)
        with pytest.raises(ValueError, match="TF_CONFIG.*Received: .*" + re.escape(text)):
            make_strategy("multi_worker")
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"chief": ["a:1"], "worker": ["b:1"]}}')
    with pytest.warns(
        UserWarning, match="TF_CONFIG names 2 workers.*--strategy multi_worker"
    ) as caught:
        make_strategy("one_device")
    assert caught[0].filename == __file__
    monkeypatch.setenv("TF_CONFIG", "")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        make_strategy("one_device")
