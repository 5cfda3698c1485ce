"""Options of the graphs of a network: written once, here, for everything that takes them."""

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, Self, TypedDict, TypeVar, get_args

from dgnet_keras.checks import check_choice, closest, is_number
from dgnet_keras.layers.gates import check_gate, gates
from dgnet_keras.layers.wiring import PATHS, wirings

Init = Literal["open", "static"]
INITS: tuple[Init, ...] = get_args(Init)
Skip = Literal["auto", "never"]
SKIPS: tuple[Skip, ...] = get_args(Skip)
PathGradient = Literal["all", "taken"]
PATH_GRADIENTS: tuple[PathGradient, ...] = get_args(PathGradient)
_Function = TypeVar("_Function", bound=Callable[..., Any])


class GraphKeywords(TypedDict, total=False):
    """The fields of `GraphOptions` as keyword arguments, for type checkers and editors."""

    wiring: str
    threshold: float | None
    edge_scale: float | None
    init: Init
    gate: str
    learn_threshold: bool
    max_nodes: int | None
    skip: Skip
    skip_in_training: Skip
    path_gradient: PathGradient


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphOptions:
    """How the graphs of a network are wired; see `GraphStage` for the formulas.

    `GraphStage`, the backbones and `create` take the fields as keyword arguments; the recipes of
    training and detection's configuration have them as keys.

    Args:
        wiring: `"dynamic"` (routers), `"chain"` (only edges i - 1 -> i of weight 1: the original
            network, the static twin), `"learned"` (one trainable logit an edge, the same for
            every sample), `"random"` (seeded Bernoulli(0.5) edges of weight 1 / in-degree),
            `"complete"` (every edge, weight 1 / in-degree), `"path"` (routers choose, for each
            sample, which nodes it takes; edges of weight 1 lead from one to the next),
            `"learned_path"` (one trainable logit a node, the same for every sample), or one of
            `register_wiring`.
        threshold: float in [0, edge_scale), in units of edge weight: edges of at most this weight
            are closed. Of paths, any finite float, in logits: nodes of at most this logit are
            passed by. None means 0.1, of paths 0.
        edge_scale: the largest edge weight; None means 1 with `init="open"` and of paths, 2 with
            `"static"`.
        init: `"open"`: every edge starts open with weight edge_scale / 2. `"static"`: chain
            edges start with weight exactly 1 and all others closed, so that a stage computes
            what the chain of its blocks computes. Paths start so with either: without the noise
            of training, every node is taken.
        gate: `"straight_through"`, `"masked"` or `"surrogate"`: gradients of the threshold gate,
            see `ThresholdGate`; or one of `register_gate`.
        learn_threshold: whether each node's threshold is trained (surrogate gate only).
        max_nodes: int of at least 2, or None. Bounds the blocks of one graph: a deeper stage is
            split into consecutive graphs of near-equal size.
        skip: what inference does with a node for the samples that do not take it. `"auto"`: it is
            not computed for them, where shapes need not be static (they must be for XLA, hence
            on a TPU). `"never"`: it is, and multiplied by 0. Answers are the same.
        skip_in_training: the same in training. Batch normalisation takes its statistics from the
            samples that take the node either way. Of paths with `path_gradient="taken"`.
        path_gradient: of paths: which samples a choice learns from. `"all"`: training computes
            every node for every sample, and normalises over all, so that a sample that passes a
            node by says what the node would have been worth. `"taken"`: those alone that take the
            node, which need not be computed for the others: cheaper steps, and many more of them
            for the same accuracy.

    Raises:
        ValueError: for an unknown choice, or a value out of range.
    """

    wiring: str = "dynamic"
    threshold: float | None = None
    edge_scale: float | None = None
    init: Init = "open"
    gate: str = "straight_through"
    learn_threshold: bool = False
    max_nodes: int | None = None
    skip: Skip = "auto"
    skip_in_training: Skip = "auto"
    path_gradient: PathGradient = "all"

    def __post_init__(self) -> None:
        check_choice("wiring", self.wiring, wirings())
        check_choice("init", self.init, INITS)
        check_choice("gate", self.gate, gates())
        check_choice("skip", self.skip, SKIPS)
        check_choice("skip_in_training", self.skip_in_training, SKIPS)
        check_choice("path_gradient", self.path_gradient, PATH_GRADIENTS)
        nodes = self.max_nodes
        if nodes is not None and (type(nodes) is not int or nodes < 2):
            raise ValueError(
                f"`max_nodes` must be an integer of at least 2, or None. Received: {nodes!r}"
            )
        if self.wiring in PATHS:
            self._check_path()
            return
        if self.path_gradient != "all" and self.wiring != "chain":  # the twin of any network
            raise ValueError(
                f"`path_gradient` is of paths, `wiring` {' or '.join(map(repr, PATHS))}. "
                f"Received: path_gradient={self.path_gradient!r}, wiring={self.wiring!r}"
            )
        check_gate(
            self.gate,
            threshold=self.resolved_threshold,
            edge_scale=self.resolved_edge_scale,
            learn_threshold=self.learn_threshold,
        )
        self._check_init()

    def _check_path(self):
        threshold = self.resolved_threshold
        if not is_number(threshold) or not math.isfinite(threshold):
            raise ValueError(
                "`threshold` of a path must be a finite number, in logits. "
                f"Received: threshold={threshold!r}"
            )
        expected = {"edge_scale": 1, "gate": "straight_through", "learn_threshold": False}
        for name, value in expected.items():
            given = self.resolved_edge_scale if name == "edge_scale" else getattr(self, name)
            if given != value:
                raise ValueError(
                    f"`wiring={self.wiring!r}` has edges of weight 1 and a gate of its own: "
                    f"`{name}` must be {value!r}, or not be given. Received: {name}={given!r}"
                )

    def _check_init(self):
        scale, threshold = self.resolved_edge_scale, self.resolved_threshold
        if self.init == "static" and (scale != 2 or not 0 < threshold < 1):
            raise ValueError(
                "`init='static'` needs `edge_scale=2` and `threshold` in (0, 1), so that a chain "
                f"edge has weight exactly 1. Received: edge_scale={scale}, threshold={threshold}"
            )
        if self.init == "open" and not scale / 2 > threshold:
            raise ValueError(
                "`init='open'` starts every edge at edge_scale / 2, which must be above the "
                f"threshold. Received: edge_scale={scale}, threshold={threshold}"
            )

    @property
    def resolved_edge_scale(self) -> float:
        """The largest edge weight: `edge_scale`, or what None means."""
        if self.edge_scale is not None:
            return self.edge_scale
        return 1.0 if self.wiring in PATHS else default_edge_scale(self.init)

    @property
    def resolved_threshold(self) -> float:
        """The threshold that weights or logits must exceed: `threshold`, or what None means."""
        if self.threshold is not None:
            return self.threshold
        return 0.0 if self.wiring in PATHS else 0.1

    def resolved(self) -> Self:
        """The same options with the values that None stands for, as floats where they are."""
        return dataclasses.replace(
            self,
            threshold=float(self.resolved_threshold),
            edge_scale=float(self.resolved_edge_scale),
        )

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """The options given as keyword arguments; `ValueError` names one that there is not."""
        for name in options:
            if name not in cls.names():
                raise ValueError(
                    f"Unknown option {name!r}.{closest(name, cls.names())} "
                    f"Options: {', '.join(cls.names())}"
                )
        return cls(**options)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of the options, in order."""
        return tuple(field.name for field in dataclasses.fields(GraphOptions))

    def keywords(self) -> dict[str, Any]:
        """The options as keyword arguments, also of a subclass that has more fields."""
        return {name: getattr(self, name) for name in self.names()}


def default_edge_scale(init: str) -> float:
    """The largest edge weight where none is given; `"static"` starts edges at half of it, 1."""
    return 2.0 if init == "static" else 1.0


def shows_graph_options(function: _Function) -> _Function:
    """Has `help` and notebooks show the fields of `GraphOptions` that `function` takes.

    Args:
        function: one whose last parameter, `**options`, takes them.
    """
    signature = inspect.signature(function)
    *own, rest = signature.parameters.values()
    fields = [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default)
        for f in dataclasses.fields(GraphOptions)
    ]
    vars(function)["__signature__"] = signature.replace(parameters=[*own, *fields, rest])
    return function
