"""Multiply-adds (MACs) and parameters of a model, item by item, and of each graph's parts."""

import functools
import math
import weakref
from collections.abc import Sequence
from typing import NotRequired, TypedDict

import keras
import numpy as np
import tensorflow as tf

from dgnet_keras.adjacencies import adjacency, check_network
from dgnet_keras.costs import GraphCosts, MacItem, ModelCosts
from dgnet_keras.layers.blocks import ResidualBlock, SqueezeExcite
from dgnet_keras.layers.conv import ConvNormAct
from dgnet_keras.layers.graph import GraphStage
from dgnet_keras.layers.wiring import PATHS
from dgnet_keras.preprocessing import Preprocessing

KINDS = ("convolution", "dense", "router", "aggregation")


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


_known: weakref.WeakKeyDictionary[keras.Model, dict[tuple[int, ...], ModelCosts]]
_known = weakref.WeakKeyDictionary()


def model_costs(model: keras.Model, image_size: Sequence[int] | None = None) -> ModelCosts:
    """The multiply-adds of a model's parts; counted once for a model and a size.

    Args:
        model: a backbone or classifier of this package.
        image_size: (height, width) in pixels; None means the model's input, or where that is not
            fixed `model.preprocessing.image_size`.

    Raises:
        ValueError: if a layer's multiply-adds are not known; see `count_layer`.
    """
    if any(isinstance(layer, Preprocessing) for layer in model.layers):
        check_network(model, "adjacency_outputs")
    _, height, width, channels = model.input_shape
    size = image_size or (height, width)
    if None in size:
        size = model.preprocessing.image_size
    shape = (1, *size, channels)
    known = _known.setdefault(model, {})
    if shape not in known:
        known[shape] = _count(model, shape)
    return known[shape]


def _count(model, shape):
    items: list[MacItem] = []
    graphs: dict[str, GraphCosts] = {}
    for layer in model.layers:
        if isinstance(layer, GraphStage):
            shape, found = _count_stage(layer, shape, layer.name, items)
            graphs |= found
        else:
            shape = count_layer(layer, shape, layer.name, items)
    return ModelCosts(tuple(items), graphs)


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
    which inference does not compute where `skip` is `"auto"`. Of paths every router counts.

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
        images = np.asarray(images)
        image_size = tuple(images.shape[1:3])
    costs = model_costs(model, image_size)
    by_kind = dict.fromkeys(KINDS, 0)
    for item in costs.items:
        by_kind[item["kind"]] += item["macs"]
    counted: MacCount = {
        "macs": costs.total,
        "parameters": sum(math.prod(v.shape) for v in model.trainable_variables),
        "by_kind": by_kind,
        "items": [MacItem(**item) for item in costs.items],
    }
    if images is not None:
        found = adjacency(model, images)
        counted["per_instance"] = {
            "macs": costs.of_images(found, len(images)).numpy(),
            "open_edges": {name: matrix > 0 for name, matrix in found.items()},
        }
    return counted


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
    return _count_stage(layer, shape, name, items)[0]


def _count_stage(stage, shape, name, items):
    """Appends a stage's items; returns its output shape and its graphs' `GraphCosts` by key."""
    blocks = []
    for block in stage.blocks:
        before = len(items)
        shape = count_layer(block, shape, f"{name}/{block.name}", items)
        blocks.append(sum(item["macs"] for item in items[before:]))
    return shape, {g.key: _count_graph(stage, g, blocks, shape, name, items) for g in stage.graphs}


def _count_graph(stage, graph, blocks, shape, name, items):
    """Appends a graph's routers and edges; returns its `GraphCosts`."""
    n = graph.num_blocks
    routers, edges = np.zeros(n, "int64"), np.zeros((n + 1, n + 1), "int64")
    for node in range(n):
        router = stage.routers().get(graph.first + node)
        if router is not None:
            routers[node] = router.macs(shape[-1])
            key = f"{name}/{router.name}"
            items.append({"name": key, "kind": "router", "macs": int(routers[node])})
    is_path = stage.options.wiring in PATHS
    if stage.options.wiring != "chain" and not is_path:
        edges = np.triu(np.full((n + 1, n + 1), math.prod(shape[1:])), k=1)
        item = {"name": f"{graph.key}/edges", "kind": "aggregation", "macs": int(edges.sum())}
        items.append(item)
    nodes = np.array(blocks[graph.first : graph.last + 1], "int64")
    return GraphCosts(nodes, routers, edges, is_path)
