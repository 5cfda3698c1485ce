"""Backbone: a stem, graph stages and a head as one functional Keras model."""

import contextlib
import dataclasses
import random
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
    """A Keras model of preprocessed images.

    It compiles with XLA by default only where an accelerator is present.
    """

    preprocessing: Preprocessing

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
        seed: of the initial weights and of random wiring. Blocks of equal seed start equal in
            every wiring.
        preprocessing: a `Preprocessing`, or None for the default of `input_shape`.
        dtype: dtype policy of the layers; None means Keras's global policy.
        name: of the model; None means the variant's name.
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
        **options: Unpack[GraphKeywords],
    ) -> None:
        input_shape, seed = check_input_shape(input_shape), check_seed(seed)
        graph_options = GraphOptions.of(options)
        if isinstance(spec, str):
            name = name or spec
            spec = self.variant_spec(spec)
        dtype = keras.dtype_policies.get(dtype)
        pyramid: dict[str, keras.KerasTensor] = {}
        adjacency: dict[str, keras.KerasTensor] = {}
        with construction_scope(seed, dtype):
            inputs = keras.Input(input_shape, name="images", dtype="float32")
            x = self.stem(spec, inputs)
            stride = spec.stem_reduction
            for k, blocks in enumerate(self.stage_blocks(spec), start=1):
                stage = GraphStage(blocks, seed=(seed, k), name=f"stage{k}", **options)
                outputs = stage(x)
                x = outputs["features"]
                stride *= blocks[0].strides
                if stride.bit_count() == 1:  # other strides have no level
                    pyramid[f"P{stride.bit_length() - 1}"] = x
                adjacency.update(outputs["adjacency"])
            outputs = self.head(spec, x)
        super().__init__(inputs=inputs, outputs=outputs, name=name or self.family)
        self.spec: Any = spec
        self.graph_options = graph_options
        self.pyramid_outputs = pyramid
        self.adjacency_outputs = adjacency
        self.preprocessing = preprocessing or Preprocessing.for_input(
            input_shape, crop=spec.default_crop, image_size=spec.default_image_size
        )
        self.seed = seed
        self._layer_options = {
            "input_shape": input_shape,
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
        return self.graph_options.wiring

    @property
    def stages(self) -> list[GraphStage]:
        """The graph stages in order."""
        return [layer for layer in self.layers if isinstance(layer, GraphStage)]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments; the spec as a dict of its fields."""
        return {
            "spec": dataclasses.asdict(self.spec),
            **self._layer_options,
            **self.graph_options.keywords(),
            "seed": self.seed,
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
