"""Multiply-adds (MACs) and parameters of a model, item by item."""

import functools
import math

import keras

from dgnet_keras.layers.blocks import ConvNormAct, ResidualBlock
from dgnet_keras.layers.graph import GraphStage


def count_macs(model, *, image_size=None):
    """Counts multiply-adds of one image, and parameters.

    Counted are convolutions, dense layers, routers and the aggregation (one multiply-add for each
    edge and element of a feature map; every edge of the graph, open or not). Normalisation,
    activation, pooling and additions of shortcuts are not, as is usual.

    Args:
        model: a backbone or classifier of this package.
        image_size: (height, width) in pixels; None means the model's input, or where that is not
            fixed `model.preprocessing.image_size`.

    Returns:
        Dict: `macs`, the total; `parameters`, trainable ones; `by_kind`, dict of MACs of
        `convolution`, `dense`, `router`, `aggregation`; `items`, a list of dicts `name`, `kind`,
        `macs` in the order of the network.
    """
    _, height, width, channels = model.input_shape
    defaults = image_size or model.preprocessing.image_size
    shape = (1, height or defaults[0], width or defaults[1], channels)
    items = []
    for layer in model.layers:
        shape = _count(layer, shape, layer.name, items)
    by_kind = dict.fromkeys(("convolution", "dense", "router", "aggregation"), 0)
    for item in items:
        by_kind[item["kind"]] += item["macs"]
    return {
        "macs": sum(by_kind.values()),
        "parameters": sum(math.prod(v.shape) for v in model.trainable_variables),
        "by_kind": by_kind,
        "items": items,
    }


@functools.singledispatch
def _count(layer, shape, name, items):
    """Appends the layer's items, and returns its output shape. By default nothing counts."""
    return tuple(layer.compute_output_shape(shape))


@_count.register
def _(layer: keras.layers.InputLayer, shape, name, items):
    return shape


@_count.register
def _(layer: keras.layers.Conv2D, shape, name, items):
    output = tuple(layer.compute_output_shape(shape))
    macs = math.prod(output[1:]) * math.prod(layer.kernel.shape[:3])
    items.append({"name": name, "kind": "convolution", "macs": macs})
    return output


@_count.register
def _(layer: keras.layers.Dense, shape, name, items):
    output = tuple(layer.compute_output_shape(shape))
    macs = math.prod(output[1:]) * layer.kernel.shape[0]
    items.append({"name": name, "kind": "dense", "macs": macs})
    return output


@_count.register
def _(layer: ConvNormAct, shape, name, items):
    padded = shape if layer.pad is None else layer.pad.compute_output_shape(shape)
    return _count(layer.conv, padded, f"{name}/conv", items)


@_count.register
def _(layer: ResidualBlock, shape, name, items):
    if layer.shortcut is not None:
        _count(layer.shortcut, shape, f"{name}/shortcut", items)
    for conv in layer.convs:
        shape = _count(conv, shape, f"{name}/{conv.name}", items)
    return shape


@_count.register
def _(layer: GraphStage, shape, name, items):
    for block in layer.blocks:
        shape = _count(block, shape, f"{name}/{block.name}", items)
    for graph in layer.graphs:
        edges = graph.num_blocks * (graph.num_blocks + 1) // 2
        if layer.wiring == "dynamic":
            macs = edges * shape[-1]
            items.append({"name": f"{graph.key}/routers", "kind": "router", "macs": macs})
        if layer.wiring != "chain":
            macs = edges * math.prod(shape[1:])
            items.append({"name": f"{graph.key}/edges", "kind": "aggregation", "macs": macs})
    return shape
