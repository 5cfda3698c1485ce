"""The options of a graph are written once, and everything takes them from there."""

import dataclasses
import inspect
from typing import get_type_hints

import keras
import pytest
from catalog import create

import dgnet_keras as dg
from dgnet_keras.layers import GraphOptions, GraphStage
from dgnet_keras.layers.options import GraphKeywords

DEFAULTS = {field.name: field.default for field in dataclasses.fields(GraphOptions)}


def test_type_checkers_see_the_fields_that_there_are():
    assert get_type_hints(GraphKeywords) == get_type_hints(GraphOptions)


@pytest.mark.parametrize("function", [dg.create, GraphStage, dg.DGResNet])
def test_help_shows_the_fields_with_their_defaults(function):
    shown = inspect.signature(function).parameters
    assert {name: shown[name].default for name in DEFAULTS} == DEFAULTS


def test_a_model_says_its_options():
    model = create("resnet_cifar_learned_threshold")
    options = model.backbone.graph_options
    assert (options.gate, options.threshold, options.learn_threshold) == ("surrogate", 0.3, True)
    assert options.edge_scale is None
    assert all(stage.options == options.resolved() for stage in model.backbone.stages)
    assert [stage.threshold for stage in model.backbone.stages] == [0.3, 0.3]
    assert options.keywords().items() <= model.backbone.get_config().items()


def test_none_stands_for_the_edge_scale_of_the_start():
    assert GraphOptions().resolved().edge_scale == 1
    assert GraphOptions(init="static").resolved().edge_scale == 2
    assert GraphOptions(edge_scale=3).resolved().edge_scale == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wiring": "ring"}, "wiring.*dynamic.*'ring'"),
        ({"init": "zeros"}, "init.*open.*'zeros'"),
        ({"gate": "hard"}, "gate.*masked.*'hard'"),
        ({"threshold": -0.01}, r"threshold.*\[0, edge_scale\)"),
        ({"threshold": 1.0}, r"threshold.*\[0, edge_scale\)"),
        ({"threshold": float("nan")}, r"threshold.*\[0, edge_scale\).*nan"),
        ({"threshold": "0.5"}, "`threshold` must be a number. Received: '0.5'"),
        ({"threshold": 0.5}, "init='open'.*above the threshold"),
        ({"edge_scale": -1.0}, "edge_scale=-1"),
        ({"edge_scale": float("inf")}, "edge_scale=inf"),
        ({"init": "static", "edge_scale": 1.0}, "edge_scale=2.*edge_scale=1.0"),
        ({"init": "static", "threshold": 0.0}, r"\(0, 1\).*threshold=0.0"),
        ({"learn_threshold": True}, "gate='surrogate'.*'straight_through'"),
        ({"learn_threshold": True, "gate": "surrogate", "threshold": 0}, "above 0.*threshold=0"),
        ({"max_nodes": 1}, "max_nodes.*at least 2.*1"),
        ({"max_nodes": True}, "max_nodes.*integer.*True"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        GraphOptions(**options)


@pytest.mark.parametrize("make", [GraphStage, dg.DGResNet])
def test_an_unknown_option_is_named(make):
    first = "resnet18" if make is dg.DGResNet else [keras.layers.Conv2D(3, 3, name="block_0")]
    with pytest.raises(ValueError, match=r"'treshold'.*Did you mean 'threshold'.*max_nodes"):
        make(first, treshold=0.2)
