"""Whether a network's routers do what they are for: what is wrong with them, and what to try."""

import dataclasses

import numpy as np

from dgnet_keras.edge_statistics import EdgeStatistics, check_adjacency_batch, edges_of

RARE = 0.001
CONSTANT = 0.01

# What `router_health` says of each kind of finding.
MESSAGES = {
    "collapsed": "The routers of these stages give every image the same edge weights ({details}): "
    "they have collapsed, or have not learned yet. Try more epochs, or a higher "
    "router_lr_multiplier. If it stays so, wiring='learned' gives the same network for less.",
    "dead_nodes": "Hardly any image uses these blocks ({details}): no open edges lead to them, or "
    "from them to the output. Unused blocks do not learn. Try a lower threshold, or a lower "
    "router_lr_multiplier: routers that are ahead of the blocks close what has not learned yet.",
    "dead_edges": "Most edges are closed for (almost) every image ({details}). A network that "
    "started as its static twin may need more epochs. Try a lower threshold.",
    "always_open": "Every edge is open for every image: edge weights differ by image, paths do "
    "not. Try a higher threshold (the mean of the edges' weights is {weight}).",
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something wrong with a network's routers.

    Attributes:
        kind: `"collapsed"`, `"dead_edges"`, `"dead_nodes"` or `"always_open"`.
        stages: names of the stages (or graphs) concerned.
        message: what was found, and what to try, in plain words.
    """

    kind: str
    stages: tuple[str, ...]
    message: str


def router_health(statistics: EdgeStatistics | dict[str, np.ndarray]) -> list[Finding]:
    """What is wrong with the routers, if anything.

    - `collapsed`: in a stage no edge opens or closes by image, and no edge's weight has a standard
      deviation over images of more than 1 % of its mean: the wiring is the same for every image.
    - `dead_nodes`: blocks that at most 0.1 % of the images use: no open edges lead there, or from
      there to the output. They hardly get a gradient either.
    - `dead_edges`: more than half of a stage's edges are open for at most 0.1 % of the images.
    - `always_open`: in no stage does any edge close for more than 0.1 % of the images: weights
      differ by image, paths do not. (A stage all of whose edges stay open is no fault while
      another's do not.)

    To be asked of `dynamic` networks; wiring that is meant to be the same for every image is found
    to be just that. Edges and nodes are judged by the images at hand: some hundreds, of all
    classes, are needed.

    Args:
        statistics: `EdgeStatistics`, or an adjacency, a dict of arrays (images, N + 1, N + 1).

    Returns:
        List of `Finding`; empty for a healthy network.

    Raises:
        ValueError: if there are no edges, or only one image.
    """
    if not isinstance(statistics, EdgeStatistics):
        if check_adjacency_batch(statistics) < 2:
            raise ValueError("The routers' health needs at least 2 images. Received: 1")
        statistics = EdgeStatistics.of(statistics)
    found: dict[str, dict[str, str]] = {kind: {} for kind in MESSAGES}
    for name, rates in statistics.open_rate.items():
        edges = edges_of(rates)
        rate = rates[edges]
        mean, std = statistics.mean_weight[name][edges], statistics.weight_std[name][edges]
        differs = (rate > RARE) & (rate < 1 - RARE)
        if not differs.any() and (std <= CONSTANT * np.maximum(mean, 1e-12)).all():
            found["collapsed"][name] = name
        unused = np.flatnonzero(statistics.node_rate[name][:-1] <= RARE)
        if unused.size:
            found["dead_nodes"][name] = f"{name}: {', '.join(map(str, unused))}"
        dead = np.mean(rate <= RARE)
        if dead > 0.5:
            found["dead_edges"][name] = f"{dead:.0%} in {name}"
        if (rate >= 1 - RARE).all():
            found["always_open"][name] = name
    stages = set(statistics.open_rate)
    if set(found["always_open"]) != stages or set(found["collapsed"]) == stages:
        found["always_open"] = {}
    weight = _mean_of_edges(statistics.mean_weight)
    return [
        Finding(
            kind,
            tuple(details),
            MESSAGES[kind].format(details="; ".join(details.values()), weight=f"{weight:.2f}"),
        )
        for kind, details in found.items()
        if details
    ]


def _mean_of_edges(matrices):
    return np.concatenate([matrix[edges_of(matrix)] for matrix in matrices.values()]).mean()
