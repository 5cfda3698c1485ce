"""Multiply-adds of a model's parts, and what images compute of them, by their adjacency."""

import dataclasses
from collections.abc import Mapping
from typing import TypedDict

import numpy as np
import tensorflow as tf


class MacItem(TypedDict):
    """A layer that computes, or a graph's edges; see `count_macs`."""

    name: str
    kind: str
    macs: int


@dataclasses.dataclass(frozen=True)
class GraphCosts:
    """Multiply-adds of one image in each part of a graph of N blocks.

    Attributes:
        nodes: int64 (N,), of each block.
        routers: int64 (N,), of each block's router; 0 where there is none.
        edges: int64 (N + 1, N + 1), of each edge j -> i at [j, i]; 0 in a chain and of paths,
            where features are handed on as they are.
        is_path: whether one edge at most leads into a node, and every router runs, which chooses
            its node; if not, a node's router runs where the node is on.
    """

    nodes: np.ndarray
    routers: np.ndarray
    edges: np.ndarray
    is_path: bool = False

    @property
    def total(self) -> int:
        """With every node on and every edge open."""
        return int(self.nodes.sum() + self.routers.sum() + self.edges.sum())

    def macs(self, is_open: tf.Tensor) -> tf.Tensor:
        """What images compute: open edges, and the blocks and routers of the nodes that are on.

        Args:
            is_open: (batch, N + 1, N + 1), a floating point dtype: 1 for open edges, 0 for closed
                ones. A mask that carries a gradient gives the costs one: a node is on as much as
                the most open edge into it, of paths as all edges into it together.

        Returns:
            Multiply-adds, (batch,), of the dtype of `is_open`. Exact in float64.
        """
        is_on = self.is_on(is_open)
        routed = tf.ones_like(is_on) if self.is_path else is_on
        nodes = is_on * tf.cast(self.nodes, is_open.dtype)
        nodes = tf.reduce_sum(nodes + routed * tf.cast(self.routers, is_open.dtype), axis=1)
        edges = is_open * tf.cast(self.edges, is_open.dtype)
        return nodes + tf.reduce_sum(edges, axis=(1, 2))

    def is_on(self, is_open: tf.Tensor) -> tf.Tensor:
        """Which nodes are on, (batch, N), of the mask that `macs` takes."""
        into = (tf.reduce_sum if self.is_path else tf.reduce_max)(is_open, axis=1)
        return tf.concat([tf.ones_like(into[:, :1]), into[:, 1:-1]], axis=1)

    @property
    def least(self) -> int:
        """With no node on but the first, and one edge, from it to the output."""
        routers = self.routers.sum() if self.is_path else self.routers[0]
        return int(self.nodes[0] + routers + self.edges[0, -1])


@dataclasses.dataclass(frozen=True)
class ModelCosts:
    """Multiply-adds of one image in each part of a model; see `model_costs`.

    Attributes:
        items: what computes, in the order of the network.
        graphs: the costs of each graph with edges, by the name of its adjacency.
    """

    items: tuple[MacItem, ...]
    graphs: Mapping[str, GraphCosts]

    @property
    def total(self) -> int:
        """With every node on and every edge open."""
        return sum(item["macs"] for item in self.items)

    @property
    def elsewhere(self) -> int:
        """Outside of the graphs."""
        return self.total - sum(graph.total for graph in self.graphs.values())

    @property
    def static(self) -> int:
        """Of the static twin: without routers and edges."""
        own = (i["macs"] for i in self.items if i["kind"] not in ("router", "aggregation"))
        return sum(own)

    @property
    def least_share(self) -> float:
        """What an image computes at least, over the static twin's."""
        return (self.elsewhere + sum(g.least for g in self.graphs.values())) / self.static

    def shares(self, found: Mapping[str, np.ndarray | tf.Tensor], count: int) -> np.ndarray:
        """What each image computes over the static twin's: float64 (count,); see `of_images`."""
        return self.of_images(found, count).numpy() / self.static

    def of_images(
        self, found: Mapping[str, np.ndarray | tf.Tensor], count: int | tf.Tensor
    ) -> tf.Tensor:
        """What each image computes, without what its closed edges and nodes that are off save.

        Args:
            found: the images' adjacency, dict of name to array or tensor (count, N + 1, N + 1).
            count: number of images, int or scalar tensor.

        Returns:
            int64 tensor (count,), multiply-adds.
        """
        macs = tf.fill([count], tf.constant(self.elsewhere, tf.int64))
        for name, graph in self.graphs.items():
            is_open = tf.cast(tf.convert_to_tensor(found[name]) > 0, tf.float64)
            macs += tf.cast(graph.macs(is_open), tf.int64)
        return macs
