"""Backbone: a stem, graph stages and a head as one functional Keras model."""

import contextlib
import dataclasses
import difflib
import random
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from dgnet_keras.layers.blocks import check_positive
from dgnet_keras.layers.gate import Gate
from dgnet_keras.layers.graph import GraphStage
from dgnet_keras.layers.wiring import Init
from dgnet_keras.preprocessing import Preprocessing

# Layer path to timm's module, for the families that timm's ResNet class covers.
RESNET_TIMM_NAMES = types.MappingProxyType(
    {
        "stem/conv": "conv1",
        "stem/norm": "bn1",
        "stage{stage}/block_{block}/conv{conv}/conv": "layer{stage}.{block}.conv{conv}",
        "stage{stage}/block_{block}/conv{conv}/norm": "layer{stage}.{block}.bn{conv}",
        "stage{stage}/block_{block}/shortcut/conv": "layer{stage}.{block}.downsample.0",
        "stage{stage}/block_{block}/shortcut/norm": "layer{stage}.{block}.downsample.1",
        "logits": "fc",
    }
)


def closest(name: object, names: Iterable[object]) -> str:
    """`" Did you mean 'a' or 'b'?"` for the names closest to `name`, or an empty string.

    Names that begin with `name` come first.
    """
    text, known = str(name), [str(n) for n in names]
    longer = [n for n in known if text and n.startswith(text)]
    close = difflib.get_close_matches(text, known, n=3, cutoff=0.5)
    matches = list(dict.fromkeys([*longer, *close]))[:3]
    return f" Did you mean {' or '.join(map(repr, matches))}?" if matches else ""


def check_input_shape(input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
    """Returns (height or None, width or None, channels); raises `ValueError` if it is not that."""
    shape = tuple(input_shape)
    sizes_ok = len(shape) == 3 and all(s is None or (int(s) == s and s > 0) for s in shape)
    if not sizes_ok or shape[2] is None:
        raise ValueError(
            "`input_shape` must be (height, width, channels); height and width may be None. "
            f"Received: input_shape={input_shape!r}"
        )
    return shape


class Spec:
    """Base of the families' frozen dataclasses: a network in numbers, a field each."""

    @property
    def stem_reduction(self) -> int:
        """Stride of the stem, pooling included; a family says it."""
        raise NotImplementedError

    @property
    def default_crop(self) -> float:
        """Crop of the default preprocessing."""
        return 0.875

    @property
    def default_image_size(self) -> int:
        """Height and width in pixels that the variant is usually trained at."""
        return 224


def check_stages(spec: Spec, *names: str) -> None:
    """Makes the named fields of a Spec tuples of positive ints, one entry a stage.

    Raises:
        ValueError: if they are not, or differ in length.
    """
    for name in names:
        if not isinstance(getattr(spec, name), list | tuple):
            raise ValueError(
                f"`{name}` must be a sequence with one entry a stage. "
                f"Received: {getattr(spec, name)!r}"
            )
        object.__setattr__(spec, name, tuple(getattr(spec, name)))
        for value in getattr(spec, name):
            check_positive(**{name: value})
    lengths = {len(getattr(spec, name)) for name in names}
    if len(lengths) > 1 or 0 in lengths:
        received = ", ".join(f"{name}={getattr(spec, name)}" for name in names)
        raise ValueError(
            f"{', '.join(f'`{n}`' for n in names)} must have one entry a stage. "
            f"Received: {received}"
        )


@contextlib.contextmanager
def construction_scope(seed: int, dtype: str | keras.DTypePolicy) -> Iterator[None]:
    """Layers made inside draw their initial weights from `seed` and use the policy `dtype`.

    Keras draws the seed of an initializer from Python's `random` when the initializer is made.
    Wirings add no random initializer, so the blocks of one seed start equal in every wiring.
    """
    state, policy = random.getstate(), keras.config.dtype_policy()
    random.seed(seed)
    keras.config.set_dtype_policy(dtype)
    try:
        yield
    finally:
        random.setstate(state)
        keras.config.set_dtype_policy(policy)


class GraphModel(keras.Model):
    """A Keras model that compiles with XLA by default only where an accelerator is present."""

    def compile(
        self, *args: Any, jit_compile: bool | Literal["auto"] = "auto", **kwargs: Any
    ) -> None:
        """As `keras.Model.compile`; `jit_compile="auto"` means no XLA on a CPU.

        XLA made a CPU's train step 3 to 4 times slower (measured on a bottleneck stage).
        """
        if jit_compile == "auto":
            accelerators = tf.config.list_logical_devices("GPU")
            accelerators += tf.config.list_logical_devices("TPU")
            jit_compile = "auto" if accelerators else False
        super().compile(*args, jit_compile=jit_compile, **kwargs)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles as a saved model was, with the optimizer ready for its saved state."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def frozen_layers(self) -> list[str]:
        """Paths of the layers whose `trainable` is False, sub-layers included."""
        return [layer.path for layer in self._flatten_layers() if not layer.trainable]

    def freeze_layers(self, paths: Sequence[str]) -> None:
        """Sets `trainable` to False for the layers at `paths`."""
        for layer in self._flatten_layers():
            if layer.path in paths:
                layer.trainable = False


class Backbone(GraphModel):
    """Base of the families: images to a final feature map, through graph stages.

    A family subclasses it, and gives `family`, `spec_class`, `variants`, `timm_names` (layer path
    to the name of timm's module, see `convert.load_timm`) and the static methods `stem`,
    `stage_blocks` and (optionally) `head`.

    Args:
        spec: a variant's name, or an instance of the family's Spec.
        input_shape: (height, width, channels) in pixels; height and width may be None.
        wiring: see `GraphStage`, as for all arguments down to `max_nodes`.
        threshold: see `GraphStage`.
        edge_scale: see `GraphStage`.
        init: see `GraphStage`.
        gate: see `GraphStage`.
        learn_threshold: see `GraphStage`.
        max_nodes: see `GraphStage`.
        seed: of the initial weights and of random wiring. Blocks of equal seed start equal in
            every wiring.
        preprocessing: a `Preprocessing`, or None for the default of `input_shape`.
        dtype: dtype policy of the layers; None means Keras's global policy.
        name: of the model; None means the variant's name.

    Attributes:
        pyramid_outputs: dict `"P<level>"` to the symbolic output of the last stage of stride
            2^level, (batch, height / 2^level, width / 2^level, channels).
        adjacency_outputs: dict stage or graph name to its symbolic adjacency, float32
            (batch, N + 1, N + 1).

    Raises:
        ValueError: for an unknown variant or option, or one out of range.
    """

    family: ClassVar[str | None] = None
    spec_class: ClassVar[type[Any]]
    variants: ClassVar[Mapping[str, Spec]]
    timm_names: ClassVar[Mapping[str, str]]

    def __init__(
        self,
        spec: str | Spec,
        *,
        input_shape: Sequence[int | None] = (224, 224, 3),
        wiring: str = "dynamic",
        threshold: float = 0.1,
        edge_scale: float | None = None,
        init: Init = "open",
        gate: Gate = "straight_through",
        learn_threshold: bool = False,
        max_nodes: int | None = None,
        seed: int = 0,
        preprocessing: Preprocessing | None = None,
        dtype: str | keras.DTypePolicy | None = None,
        name: str | None = None,
    ) -> None:
        input_shape = check_input_shape(input_shape)
        if isinstance(spec, str):
            name = name or spec
            spec = self.variant_spec(spec)
        dtype = keras.dtype_policies.get(dtype)
        graph_options: dict[str, Any] = {
            "wiring": wiring,
            "threshold": threshold,
            "edge_scale": edge_scale,
            "init": init,
            "gate": gate,
            "learn_threshold": learn_threshold,
            "max_nodes": max_nodes,
        }
        pyramid: dict[str, keras.KerasTensor] = {}
        adjacency: dict[str, keras.KerasTensor] = {}
        with construction_scope(seed, dtype):
            inputs = keras.Input(input_shape, name="images", dtype="float32")
            x = self.stem(spec, inputs)
            stride = spec.stem_reduction
            for k, blocks in enumerate(self.stage_blocks(spec), start=1):
                stage = GraphStage(blocks, seed=(seed, k), name=f"stage{k}", **graph_options)
                outputs = stage(x)
                x = outputs["features"]
                stride *= blocks[0].strides
                if stride.bit_count() == 1:  # other strides have no level
                    pyramid[f"P{stride.bit_length() - 1}"] = x
                adjacency.update(outputs["adjacency"])
            outputs = self.head(spec, x)
        super().__init__(inputs=inputs, outputs=outputs, name=name or self.family)
        self.spec: Any = spec
        self.pyramid_outputs = pyramid
        self.adjacency_outputs = adjacency
        self.preprocessing = preprocessing or Preprocessing.for_input(
            input_shape, crop=spec.default_crop
        )
        self._options: dict[str, Any] = {
            "input_shape": input_shape,
            **graph_options,
            "seed": seed,
            "dtype": keras.dtype_policies.serialize(dtype),
        }

    @classmethod
    def variant_spec(cls, name: str) -> Spec:
        """The Spec of the variant called `name`; `ValueError` names the closest ones."""
        if name not in cls.variants:
            raise ValueError(
                f"{cls.__name__} has no variant {name!r}.{closest(name, cls.variants)} "
                f"It has: {', '.join(cls.variants)}"
            )
        return cls.variants[name]

    @staticmethod
    def stem(spec: Any, inputs: keras.KerasTensor) -> keras.KerasTensor:
        """Images to the first stage's input; `spec.stem_reduction` is its stride."""
        raise NotImplementedError

    @staticmethod
    def stage_blocks(spec: Any) -> list[list[keras.layers.Layer]]:
        """A list of blocks for each stage; the blocks are named `block_0`, `block_1`, ..."""
        raise NotImplementedError

    @staticmethod
    def head(spec: Any, features: keras.KerasTensor) -> keras.KerasTensor:
        """The last stage's features to the backbone's output; by default the same."""
        return features

    @property
    def wiring(self) -> str:
        """The wiring of the graph stages."""
        return self._options["wiring"]

    @property
    def stages(self) -> list[GraphStage]:
        """The graph stages in order."""
        return [layer for layer in self.layers if isinstance(layer, GraphStage)]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments; the spec as a dict of its fields."""
        return {
            "spec": dataclasses.asdict(self.spec),
            **self._options,
            "preprocessing": self.preprocessing.to_config(),
            "name": self.name,
            "frozen": self.frozen_layers(),
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: Mapping[str, Any] | None = None
    ) -> Self:
        """Rebuilds the backbone."""
        config = dict(config)
        frozen = config.pop("frozen")
        config["spec"] = cls.spec_class(**config["spec"])
        config["preprocessing"] = Preprocessing(**config["preprocessing"])
        config["dtype"] = keras.dtype_policies.deserialize(config["dtype"])
        backbone = cls(**config)
        backbone.freeze_layers(frozen)
        return backbone


def adjacency(
    model: keras.Model, images: ArrayLike, *, batch_size: int = 32
) -> dict[str, np.ndarray]:
    """The connectivity that each image takes: weights of its open edges.

    Args:
        model: a backbone or a classifier of this package.
        images: what the model takes (preprocessed), (batch, height, width, channels).
        batch_size: images computed at a time.

    Returns:
        Dict of stage (or graph) name to a float32 array (batch, N + 1, N + 1); entry [b, j, i] is
        the weight of the edge from node j to node i for image b, 0 where it is closed. Empty for
        a model without edges.

    Raises:
        ValueError: if the model has no `adjacency_outputs`, or the images do not fit it.
    """
    connectivity = connectivity_model(model)
    if connectivity is None:
        return {}
    if np.ndim(images) != 4 or np.shape(images)[0] == 0:
        raise ValueError(
            "`images` must be an array (batch, height, width, channels) of at least 1. "
            f"Received: shape {np.shape(images)}, {type(images).__name__}"
        )
    found = connectivity.predict(np.asarray(images), batch_size=batch_size, verbose=0)
    return {name: found[name] for name in model.adjacency_outputs}


def connectivity_model(model: keras.Model) -> keras.Model | None:
    """The part of a model that gives adjacency, a `keras.Model` of images to a dict of arrays.

    None for a model without edges; `ValueError` for one that is not of this package.
    """
    outputs = getattr(model, "adjacency_outputs", None)
    if outputs is None:
        raise ValueError(f"`model` must be a backbone or classifier of dgnet_keras. Got: {model}")
    return keras.Model(model.input, dict(outputs)) if outputs else None


def with_adjacency(model: keras.Model) -> keras.Model:
    """The same network, layers shared, with its connectivity as an input: what if ...?

    Example: what a classifier answers if every image takes the mean of the edge weights.

        found = dg.adjacency(model, images)
        mean = {k: np.broadcast_to(v.mean(axis=0), v.shape) for k, v in found.items()}
        logits = dg.with_adjacency(model).predict({"images": images, **mean})

    Args:
        model: a backbone or a classifier of this package.

    Returns:
        A `keras.Model` of a dict: `images`, as the model takes them, and for each key of
        `model.adjacency_outputs` the adjacency to use, float32 (batch, N + 1, N + 1), entry
        [b, j, i] the weight of the edge j -> i; only entries above the diagonal are read. Its
        output is the model's.

    Raises:
        ValueError: if the model has no edges.
    """
    outputs = getattr(model, "adjacency_outputs", None)
    if not outputs:
        raise ValueError(
            "`model` must be a backbone or classifier of dgnet_keras with at least one edge. "
            f"Received: {model}"
        )
    return _GivenConnectivity(model, name=f"{model.name}_with_adjacency")


class _GivenConnectivity(keras.Model):
    """See `with_adjacency`."""

    def __init__(self, model: keras.Model, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.steps = _steps(model)

    def call(self, inputs: dict[str, tf.Tensor], training: bool | None = None) -> tf.Tensor:
        x = inputs["images"]
        for layer in self.steps:
            if not isinstance(layer, GraphStage):
                x = layer(x, training=training)
                continue
            given = {g.key: inputs[g.key] for g in layer.graphs if g.key in inputs}
            adjacency = given if layer.graphs else None
            x = layer(x, adjacency=adjacency, training=training)["features"]
        return x


def _steps(model):
    """The layers of a model in order, each of which takes what the one before gives."""
    return [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]


def adjacency_at(
    model: keras.Model, images: tf.Tensor, threshold: float | tf.Tensor
) -> dict[str, tf.Tensor]:
    """The connectivity that images would take if every gate had another threshold.

    It equals the adjacency of a model of the same weights that was created with that threshold;
    learned thresholds are replaced too. The `chain`, `random` and `complete` wirings have no
    gates: theirs does not change.

    Args:
        model: a backbone or a classifier of this package.
        images: what the model takes (preprocessed), a tensor (batch, height, width, channels).
        threshold: in units of edge weight; a scalar, or (batch, 1) for one an image.

    Returns:
        Dict of stage (or graph) name to a float32 tensor (batch, N + 1, N + 1), as `adjacency`.
    """
    found: dict[str, tf.Tensor] = {}
    x = images
    for layer in _steps(model):
        if len(found) == len(model.adjacency_outputs):
            break  # what follows the last edges does not change them
        if isinstance(layer, GraphStage):
            outputs = layer(x, threshold=threshold, training=False)
            x = outputs["features"]
            found.update(outputs["adjacency"])
        else:
            x = layer(x, training=False)
    return found
