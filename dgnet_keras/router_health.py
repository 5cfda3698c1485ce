"""Whether a network's routers do what they are for: what is wrong with them, and what to try."""

import dataclasses

import numpy as np

from dgnet_keras.edge_statistics import EdgeStatistics, check_adjacency_batch, edges_of

RARE = 0.001
CONSTANT = 0.01

FAR = 0.05

# What `router_health` finds, the gravest first, as what is said of it and what to try.
MESSAGES = {
    "collapsed": (
        "The routers of these stages give every image the same edge weights ({details}): they have "
        "collapsed, or have not learned yet.",
        "Try more epochs, or a higher router_lr_multiplier. If it stays so, wiring='learned' gives "
        "the same network for less.",
    ),
    "one_path": (
        "Every image takes the same path{details}.",
        "Try more epochs, a higher router_lr_multiplier, or a threshold nearer to the weights of "
        "the edges (their mean is {weight}).",
    ),
    "always_open": (
        "Every edge is open for every image: edge weights differ by image, paths do not.",
        "Try a higher threshold (the mean of the edges' weights is {weight}).",
    ),
    "off_target": (
        "Images compute {share:.3f} of the static network's multiply-adds on average, the target "
        "is {target:.3f}.",
        "Try dgnet_keras.calibrate, which moves the threshold, or a higher macs_weight and more "
        "epochs.",
    ),
    "dead_nodes": (
        "Hardly any image uses these blocks ({details}): no open edges lead to them, or from them "
        "to the output. Unused blocks do not learn.",
        "Try a lower threshold, or a lower router_lr_multiplier: routers that are ahead of the "
        "blocks close what has not learned yet.",
    ),
    "dead_edges": (
        "Most edges are closed for (almost) every image ({details}). A network that started as its "
        "static twin may need more epochs.",
        "Try a lower threshold.",
    ),
}
# Where paths need another word.
PATH_ADVICE = {
    "one_path": "Without a macs_target every block is worth taking: set one, or a lower one. If "
    "all images are to take one path, dgnet_keras.freeze makes it a smaller static network.",
    "dead_nodes": "Try a higher macs_floor for longer, or let them go: dgnet_keras.freeze makes a "
    "static network without them.",
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something wrong with a network's routers.

    Attributes:
        kind: a key of `MESSAGES`.
        stages: names of the stages (or graphs) concerned; all of them where it is the network.
        message: what was found, in plain words; of the gravest finding also what to try.
    """

    kind: str
    stages: tuple[str, ...]
    message: str


def router_health(
    statistics: EdgeStatistics | dict[str, np.ndarray],
    *,
    is_path: bool = False,
    share: float | None = None,
    target: float | None = None,
) -> list[Finding]:
    """What is wrong with the routers, if anything, the gravest first; with one piece of advice.

    - `collapsed`: in a stage no edge opens or closes by image, and no edge's weight has a standard
      deviation over images of more than 1 % of its mean: the wiring is the same for every image.
    - `one_path`: the same of paths in all stages; of others, in no stage does an edge open or
      close by image, though weights differ, such as where all skip edges are closed.
    - `always_open`: in no stage does any edge close for more than 0.1 % of the images: weights
      differ by image, paths do not. (A stage all of whose edges stay open is no fault while
      another's do not.)
    - `off_target`: the share of MACs is more than 0.05 from the target.
    - `dead_nodes`: blocks that at most 0.1 % of the images use: no open edges lead there, or from
      there to the output. They hardly get a gradient either.
    - `dead_edges`: more than half of a stage's edges are open for at most 0.1 % of the images;
      not looked for in paths, of which each image has few.

    To be asked of `dynamic` and `path` networks; wiring that is meant to be the same for every
    image is found to be just that. Edges and nodes are judged by the images at hand: some hundreds,
    of all classes, are needed.

    Args:
        statistics: `EdgeStatistics`, or an adjacency, a dict of arrays (images, N + 1, N + 1).
        is_path: whether the wiring is one of paths.
        share: mean share of MACs of these images, or None.
        target: that it was to reach, or None.

    Returns:
        List of `Finding`; empty for a healthy network.

    Raises:
        ValueError: if there are no edges, or only one image.
    """
    if not isinstance(statistics, EdgeStatistics):
        if check_adjacency_batch(statistics) < 2:
            raise ValueError("The routers' health needs at least 2 images. Received: 1")
        statistics = EdgeStatistics.of(statistics)
    found = _of_stages(statistics)
    stages = set(statistics.open_rate)
    if is_path:
        found["dead_edges"], found["collapsed"], found["always_open"] = {}, {}, {}
    if set(found["always_open"]) != stages or set(found["collapsed"]) == stages:
        found["always_open"] = {}
    if set(found["one_path"]) != stages or found["collapsed"] or found["always_open"]:
        found["one_path"] = {}
    elif all(map(_is_chain, statistics.open_rate.values())):
        found["one_path"] = dict.fromkeys(
            stages, ", through every block: all skip edges are closed, as in the static network"
        )
    if share is not None and target is not None and abs(share - target) > FAR:
        found["off_target"] = dict.fromkeys(stages, "")
    weight = f"{_mean_of_edges(statistics.mean_weight):.2f}"
    findings: list[Finding] = []
    for kind, (fact, advice) in MESSAGES.items():
        details = found.get(kind)
        if not details:
            continue
        advice = PATH_ADVICE.get(kind, advice) if is_path else advice
        said = fact if findings else f"{fact} {advice}"
        listed = "; ".join(dict.fromkeys(details.values()))
        message = said.format(details=listed, weight=weight, share=share, target=target)
        findings.append(Finding(kind, tuple(details), message))
    return findings


def _of_stages(statistics):
    """By kind, the stages of which it holds, with what is to be said of each."""
    found: dict[str, dict[str, str]] = {kind: {} for kind in MESSAGES}
    for name, rates in statistics.open_rate.items():
        edges = edges_of(rates)
        rate = rates[edges]
        mean, std = statistics.mean_weight[name][edges], statistics.weight_std[name][edges]
        if not ((rate > RARE) & (rate < 1 - RARE)).any():
            found["one_path"][name] = ""
            if (std <= CONSTANT * np.maximum(mean, 1e-12)).all():
                found["collapsed"][name] = name
        unused = np.flatnonzero(statistics.node_rate[name][:-1] <= RARE)
        if unused.size:
            found["dead_nodes"][name] = f"{name}: {', '.join(map(str, unused))}"
        dead = np.mean(rate <= RARE)
        if dead > 0.5:
            found["dead_edges"][name] = f"{dead:.0%} in {name}"
        if (rate >= 1 - RARE).all():
            found["always_open"][name] = name
    return found


def _is_chain(rates):
    """Whether (almost) every image has the edges j -> j + 1 open, and no other."""
    chain = np.eye(len(rates), k=1)
    return bool(np.all(np.abs(rates - chain)[edges_of(rates)] <= RARE))


def _mean_of_edges(matrices):
    return np.concatenate([matrix[edges_of(matrix)] for matrix in matrices.values()]).mean()
