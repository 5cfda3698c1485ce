"""Backbone: a stem, graph stages and a head as one functional Keras model."""

import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self, Unpack

import keras

from dgnet_keras.backbones.model import GraphModel, construction_scope
from dgnet_keras.checks import (
    check_input_shape,
    check_positive,
    check_seed,
    closest,
)
from dgnet_keras.layers.composite import Change, Made, remade, settle_flags
from dgnet_keras.layers.graph import GraphStage
from dgnet_keras.layers.options import GraphKeywords, GraphOptions, shows_graph_options
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


class Backbone(GraphModel):
    """Base of the families: images to a final feature map, through graph stages.

    A family subclasses it, and gives `family`, `spec_class`, `variants`, `timm_names` (layer path
    to the name of timm's module, see `convert.load_timm`) and the static methods `stem`,
    `stage_blocks` and (optionally) `head`.

    Args:
        spec: a variant's name, or an instance of the family's Spec.
        input_shape: (height, width, channels) in pixels; height and width may be None.
        seed: of the initial weights and of random wiring. Blocks of equal seed start equal in
            every wiring.
        preprocessing: a `Preprocessing`, or None for the default of `input_shape`.
        dtype: dtype policy of the layers; None means Keras's global policy.
        name: of the model; None means the variant's name.
        trainable: False freezes all layers.
        changes: of a copy: what was changed on its layers, as `get_config` gives it.
        macs_target: share of the static twin's multiply-adds that training is to reach, in (0, 1],
            or None; see `budget.Budget`. An attribute too, that can be set.
        macs_weight: what the loss of this budget is multiplied by; likewise.
        **options: fields of `layers.GraphOptions`, which says what each does.

    Attributes:
        graph_options: the `GraphOptions`.
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

    @shows_graph_options
    def __init__(
        self,
        spec: str | Spec,
        *,
        input_shape: Sequence[int | None] = (224, 224, 3),
        seed: int = 0,
        preprocessing: Preprocessing | None = None,
        dtype: str | keras.DTypePolicy | None = None,
        name: str | None = None,
        trainable: bool = True,
        changes: Mapping[str, Change] | None = None,
        macs_target: float | None = None,
        macs_weight: float = 10.0,
        **options: Unpack[GraphKeywords],
    ) -> None:
        input_shape, seed = check_input_shape(input_shape), check_seed(seed)
        graph_options = GraphOptions.of(options)
        threshold = graph_options.resolved_threshold
        graph_options = dataclasses.replace(graph_options, threshold=threshold)
        if isinstance(spec, str):
            name = name or spec
            spec = self.variant_spec(spec)
        dtype = keras.dtype_policies.get(dtype)
        made = Made(changes, seeds=True)
        with construction_scope(seed, dtype):
            inputs = keras.Input(input_shape, name="images", dtype="float32")
            x = self._part("stem", spec, inputs, made)
            for k, blocks in enumerate(self.stage_blocks(spec), start=1):
                stage = GraphStage(blocks, seed=(seed, k), name=f"stage{k}", **options)
                x = made.add(stage)(x)["features"]
            outputs = self._part("head", spec, x, made)
        super().__init__(
            inputs,
            outputs,
            name=name or self.family,
            dtype=dtype,
            trainable=trainable,
            made=made,
        )
        self.spec: Any = spec
        self.graph_options = graph_options
        self.pyramid_outputs = self._pyramid()
        self.adjacency_outputs = {
            key: matrix
            for stage in self.stages
            for key, matrix in stage.output["adjacency"].items()
        }
        self.preprocessing = preprocessing or Preprocessing.for_input(
            input_shape, crop=spec.default_crop, image_size=spec.default_image_size
        )
        self.seed = seed
        self._layer_options = input_shape, dtype
        self.macs_weight = macs_weight
        self.macs_target = macs_target

    def _part(self, name, spec, features, made):
        """Runs `stem` or `head` on symbolic features, with the changes of its layers."""
        outputs = getattr(self, name)(spec, features)
        layers = _layers_between(features, outputs)
        is_changed = made.expects(f"{name}/")
        for i, layer in enumerate(layers):
            # A layer that was called keeps its first output, so that a changed part is made anew.
            new = remade(layer, {}) if is_changed else layer
            new = made.add(new, f"{name}/{i}")
            features = new(features) if is_changed else features
            settle_flags(new)
        return features if is_changed else outputs

    def _pyramid(self):
        stride, pyramid = self.spec.stem_reduction, {}
        for stage in self.stages:
            stride *= stage.blocks[0].strides
            if stride.bit_count() == 1:  # other strides have no level
                pyramid[f"P{stride.bit_length() - 1}"] = stage.output["features"]
        return pyramid

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
        """Images to the first stage's input; `spec.stem_reduction` is its stride.

        It is made of layers one after the other, and so is `head`.
        """
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
        return self.graph_options.wiring

    @property
    def stages(self) -> list[GraphStage]:
        """The graph stages in order."""
        return [layer for layer in self.layers if isinstance(layer, GraphStage)]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments; the spec as a dict of its fields."""
        input_shape, dtype = self._layer_options
        return {
            "spec": dataclasses.asdict(self.spec),
            "input_shape": input_shape,
            "dtype": keras.dtype_policies.serialize(dtype),
            **self.graph_options.keywords(),
            "seed": self.seed,
            "preprocessing": self.preprocessing.to_config(),
            **super().get_config(),
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: Mapping[str, Any] | None = None
    ) -> Self:
        """Rebuilds the backbone."""
        config = dict(config)
        frozen = config.pop("frozen", ())  # in files made before changes were kept
        config["spec"] = cls.spec_class(**config["spec"])
        config["preprocessing"] = Preprocessing(**config["preprocessing"])
        config["dtype"] = keras.dtype_policies.deserialize(config["dtype"])
        backbone = cls(**config)
        if frozen:
            backbone.freeze(frozen)
        return backbone


def _layers_between(inputs, outputs):
    """The layers that lead from one symbolic tensor to another, first one first.

    Raises:
        ValueError: if they are not layers one after the other, each with one input and output.
    """
    layers = []
    while outputs is not inputs:
        layer = outputs._keras_history.operation
        sources = keras.tree.flatten(layer.input)
        is_layer = isinstance(layer, keras.layers.Layer) and len(layer._inbound_nodes) == 1
        if not is_layer or len(sources) != 1:
            raise ValueError(
                "Stem and head must be layers one after the other, each called once; put others "
                f"into a layer of their own. Received: {layer.name!r}, a {type(layer).__name__} of "
                f"{len(sources)} inputs"
            )
        layers.append(layer)
        (outputs,) = sources
    return layers[::-1]
