"""Backbone: a stem, graph stages and a head as one functional Keras model."""

import contextlib
import dataclasses
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, Unpack

import keras
import tensorflow as tf

from dgnet_keras.checks import (
    check_input_shape,
    check_positive,
    check_preprocessed,
    check_seed,
    closest,
)
from dgnet_keras.layers.composite import Change, Made, remade, settle_flags
from dgnet_keras.layers.graph import GraphStage
from dgnet_keras.layers.initializers import seeded
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


@contextlib.contextmanager
def construction_scope(seed: int, dtype: str | keras.DTypePolicy) -> Iterator[None]:
    """Layers made inside draw their initial weights from `seed` and use the policy `dtype`.

    Wirings add no random initializer, so the blocks of one seed start equal in every wiring.
    """
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        with seeded(seed):
            yield
    finally:
        keras.config.set_dtype_policy(policy)


class GraphModel(keras.Model):
    """A model of preprocessed images: base of backbones and classifiers.

    It compiles with XLA by default only where an accelerator is present. What was changed on its
    layers is in its config.

    Args:
        inputs: symbolic images.
        outputs: symbolic output.
        name: of the model.
        trainable: False freezes all layers. Of a copy, it is the model's own flag alone, since
            its layers have theirs.
        made: the layers that the model makes.
    """

    preprocessing: Preprocessing

    def __init__(
        self,
        inputs: keras.KerasTensor,
        outputs: keras.KerasTensor,
        *,
        name: str | None,
        trainable: bool,
        made: Made,
    ) -> None:
        super().__init__(inputs=inputs, outputs=outputs, name=name, trainable=trainable)
        made.check()
        self._made = made
        if not trainable and not made.is_copy:
            self.trainable = False

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "preprocessing":
            super().__setattr__(name, value)
            return
        if not isinstance(value, Preprocessing):
            raise ValueError(f"`preprocessing` must be a `dg.Preprocessing`. Received: {value!r}")
        value.check_fits(self.input_shape[1:])
        object.__setattr__(self, name, value)  # Keras would count it among the model's layers

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """As `keras.Model.call`; refuses raw images, which Keras would cast without a word."""
        for images in keras.tree.flatten(inputs):
            check_preprocessed(images)
        return super().call(inputs, training=training, mask=mask)

    def with_preprocessing(self) -> keras.Model:
        """The same model, layers shared, behind its `preprocessing` as it is now.

        Returns:
            A `keras.Model` that takes raw images, (batch, height, width, channels) of 0 to 255,
            any size, and answers as `model(model.preprocessing(images))`. The network is its layer
            of this model's name: tools such as `dg.adjacency` take that.
        """
        images = keras.Input((None, None, self.input_shape[-1]), name="raw_images")
        outputs = self(self.preprocessing(images))
        return keras.Model(images, outputs, name=f"{self.name}_with_preprocessing")

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

    def get_config(self) -> dict[str, Any]:
        """Name, whether the model is trainable, and what was changed on its layers."""
        return {"name": self.name, "trainable": self.trainable, "changes": self._made.changes()}

    def freeze(self, paths: Sequence[str]) -> None:
        """Sets `trainable` of every layer as an older file says it: False for those at `paths`.

        That of the models is left: in such a file a classifier and its backbone share a path.
        """
        for layer in self._flatten_layers():
            if not isinstance(layer, keras.Model):
                layer.trainable = layer.path not in paths


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
        **options: Unpack[GraphKeywords],
    ) -> None:
        input_shape, seed = check_input_shape(input_shape), check_seed(seed)
        graph_options = GraphOptions.of(options)
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
        super().__init__(inputs, outputs, name=name or self.family, trainable=trainable, made=made)
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
        if not isinstance(layer, keras.layers.Layer) or len(sources) != 1:
            raise ValueError(
                "Stem and head must be layers one after the other; put others into a layer of "
                f"their own. Received: {layer.name!r}, a {type(layer).__name__} of "
                f"{len(sources)} inputs"
            )
        layers.append(layer)
        (outputs,) = sources
    return layers[::-1]
