"""Multiply-adds (MACs) and parameters of a model, item by item."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NotRequired, TypedDict

import keras
import numpy as np
import tensorflow as tf

from dgnet_keras.adjacency import adjacency
from dgnet_keras.layers.blocks import ResidualBlock, SqueezeExcite
from dgnet_keras.layers.conv import ConvNormAct
from dgnet_keras.layers.graph import GraphStage


class MacItem(TypedDict):
    """A layer that computes, or a graph's edges; see `count_macs`."""

    name: str
    kind: str
    macs: int


class InstanceMacs(TypedDict):
    """What each image computes; see `count_macs`."""

    macs: np.ndarray
    open_edges: dict[str, np.ndarray]


class MacCount(TypedDict):
    """What `count_macs` returns."""

    macs: int
    parameters: int
    by_kind: dict[str, int]
    items: list[MacItem]
    per_instance: NotRequired[InstanceMacs]


def count_macs(
    model: keras.Model,
    images: np.ndarray | tf.Tensor | None = None,
    *,
    image_size: Sequence[int] | None = None,
) -> MacCount:
    """Counts multiply-adds of one image, and parameters; with images, also of each of them.

    Counted are convolutions, dense layers, routers and the aggregation (one multiply-add for each
    edge and element of a feature map). Normalisation, activation, pooling and additions of
    shortcuts are not, as is usual. The total counts every node and every edge of the graph; an
    image's own count leaves out closed edges, and the blocks and routers of nodes that are off,
    which a runtime could skip without changing a result (today's computes them).

    Args:
        model: a backbone or classifier of this package.
        images: what the model takes (preprocessed), (count, height, width, channels), or None.
        image_size: (height, width) in pixels to count at; None means the images', or the model's
            input, or where that is not fixed `model.preprocessing.image_size`.

    Returns:
        Dict: `macs`, the total; `parameters`, trainable ones; `by_kind`, dict of MACs of
        `convolution`, `dense`, `router`, `aggregation`; `items`, a list of dicts `name`, `kind`,
        `macs` in the order of the network. With images also `per_instance`: dict of `macs`, int64
        (count,), and `open_edges`, dict of stage (or graph) name to bool (count, N + 1, N + 1).

    Raises:
        ValueError: if images and image_size are both given, or the images do not fit the model.
    """
    if images is not None:
        if image_size is not None:
            raise ValueError("Give `images` or `image_size`, not both.")
        image_size = images.shape[1:3]
    _, height, width, channels = model.input_shape
    defaults = image_size or (height, width)
    if None in defaults:
        defaults = model.preprocessing.image_size
    shape = (1, *defaults, channels)
    items: list[MacItem] = []
    for layer in model.layers:
        shape = count_layer(layer, shape, layer.name, items)
    by_kind = dict.fromkeys(("convolution", "dense", "router", "aggregation"), 0)
    for item in items:
        by_kind[item["kind"]] += item["macs"]
    counted: MacCount = {
        "macs": sum(by_kind.values()),
        "parameters": sum(math.prod(v.shape) for v in model.trainable_variables),
        "by_kind": by_kind,
        "items": items,
    }
    if images is not None:
        counted["per_instance"] = _count_instances(model, images, counted)
    return counted


def _count_instances(model, images, counted):
    found = adjacency(model, images)
    return {
        "macs": instance_macs(model, counted, found, len(images)).numpy(),
        "open_edges": {name: matrix > 0 for name, matrix in found.items()},
    }


def instance_macs(
    model: keras.Model,
    counted: MacCount,
    found: Mapping[str, np.ndarray | tf.Tensor],
    count: int | tf.Tensor,
) -> tf.Tensor:
    """The total less what each image's closed edges and nodes that are off would save.

    Args:
        model: a backbone or classifier of this package.
        counted: of `count_macs(model)`, at the size of the images.
        found: their adjacency, dict of name to array or tensor (count, N + 1, N + 1).
        count: number of images, int or scalar tensor.

    Returns:
        int64 tensor (count,), multiply-adds.
    """
    macs = tf.fill([count], tf.constant(counted["macs"], tf.int64))
    stages = [layer for layer in model.layers if isinstance(layer, GraphStage)]
    for stage in (s for s in stages if s.wiring != "chain"):
        for graph in stage.graphs:
            is_open = tf.convert_to_tensor(found[graph.key]) > 0
            edge, nodes = _unit_costs(stage, graph, counted["items"])
            opened = tf.reduce_sum(tf.cast(is_open, tf.int64), axis=(1, 2))
            is_off = tf.logical_not(tf.reduce_any(is_open, axis=1))[:, 1:-1]
            macs -= (graph.num_edges - opened) * edge
            macs -= tf.reduce_sum(tf.cast(is_off, tf.int64) * nodes, axis=1)
    return macs


def _unit_costs(stage, graph, items):
    """MACs of an edge of a graph, and int64 (N - 1,) of its nodes but the first, with routers."""
    edge = _macs_under(items, f"{graph.key}/edges") // graph.num_edges
    nodes = [
        _macs_under(items, f"{stage.name}/{stage.blocks[index].name}")
        + _macs_under(items, f"{stage.name}/router_{index}")
        for index in range(graph.first + 1, graph.last + 1)
    ]
    return edge, tf.constant(nodes, tf.int64)


def _macs_under(items, name):
    return sum(i["macs"] for i in items if i["name"] == name or i["name"].startswith(name + "/"))


@functools.singledispatch
def count_layer(
    layer: keras.layers.Layer,
    shape: tuple[int, ...],
    name: str,
    items: list[MacItem],
) -> tuple[int, ...]:
    """Appends the items of a layer, and returns its output shape.

    Layers that multiply nothing but scales (normalisation, activation, pooling) count as nothing.
    For a layer of your own that convolves, register a function of the same arguments:

        @complexity.count_layer.register
        def _(layer: MyBlock, shape, name, items):
            return complexity.count_layer(layer.conv, shape, f"{name}/conv", items)

    Args:
        layer: a built Keras layer.
        shape: of its input, (1, height, width, channels).
        name: of the layer, with those around it: `"stage1/block_0"`.
        items: list of dicts `name`, `kind`, `macs`, which is appended to.

    Returns:
        The shape of its output.

    Raises:
        ValueError: if the layer has a matrix or a kernel and nothing is registered for its class.
    """
    kernels = [v.path for v in layer.weights if len(v.shape) > 1]
    if kernels:
        raise ValueError(
            f"The multiply-adds of {name!r}, a {type(layer).__name__}, are not known; it has the "
            f"weights {', '.join(kernels[:3])}. Register a function that counts them with "
            "`dgnet_keras.complexity.count_layer.register`."
        )
    return tuple(layer.compute_output_shape(shape))


@count_layer.register(keras.layers.InputLayer)
def _(layer, shape, name, items):
    return shape


@count_layer.register(keras.Sequential)
def _(layer, shape, name, items):
    for inner in layer.layers:
        shape = count_layer(inner, shape, f"{name}/{inner.name}", items)
    return shape


@count_layer.register(keras.layers.Conv2D | keras.layers.DepthwiseConv2D)
def _(layer, shape, name, items):
    output = tuple(layer.compute_output_shape(shape))
    is_depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
    macs = math.prod(output[1:]) * math.prod(layer.kernel.shape[: 2 if is_depthwise else 3])
    items.append({"name": name, "kind": "convolution", "macs": macs})
    return output


@count_layer.register(keras.layers.Dense)
def _(layer, shape, name, items):
    output = tuple(layer.compute_output_shape(shape))
    macs = math.prod(output[1:]) * layer.kernel.shape[0]
    items.append({"name": name, "kind": "dense", "macs": macs})
    return output


@count_layer.register(ConvNormAct)
def _(layer, shape, name, items):
    padded = shape if layer.pad is None else layer.pad.compute_output_shape(shape)
    return count_layer(layer.conv, padded, f"{name}/conv", items)


@count_layer.register(SqueezeExcite)
def _(layer, shape, name, items):
    pooled: tuple[int, ...] = (1, shape[-1])
    for dense in (layer.fc1, layer.fc2):
        pooled = count_layer(dense, pooled, f"{name}/{dense.name}", items)
    return shape


@count_layer.register(ResidualBlock)
def _(layer, shape, name, items):
    if layer.shortcut is not None:
        count_layer(layer.shortcut, shape, f"{name}/shortcut", items)
    for step in layer.steps:
        shape = count_layer(step, shape, f"{name}/{step.name}", items)
    return shape


@count_layer.register(GraphStage)
def _(layer, shape, name, items):
    for block in layer.blocks:
        shape = count_layer(block, shape, f"{name}/{block.name}", items)
    for graph in layer.graphs:
        if layer.wiring == "dynamic":
            for node in range(graph.num_blocks):
                name_of_router = f"{name}/router_{graph.first + node}"
                macs = (graph.num_blocks - node) * shape[-1]
                items.append({"name": name_of_router, "kind": "router", "macs": macs})
        if layer.wiring != "chain":
            macs = graph.num_edges * math.prod(shape[1:])
            items.append({"name": f"{graph.key}/edges", "kind": "aggregation", "macs": macs})
    return shape
