"""Backbones inside TF Model Garden's detectors, and as a Keras feature pyramid for KerasCV.

Model Garden is written for tf_keras (Keras 2): `GardenBackbone` is a tf_keras layer around a
Keras 3 backbone. Importing this module registers it with Model Garden, so that its experiments
and tools can name it:

    task: {model: {backbone: {type: dgnet, dgnet: {name: resnet50, wiring: dynamic}}}}

The only module of the package that imports tf_keras or Model Garden (`official`).
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import keras
import numpy as np
import tensorflow as tf
import tf_keras
from numpy.typing import ArrayLike
from official.modeling import hyperparams
from official.vision.configs import backbones as backbone_configs
from official.vision.modeling.backbones import factory

from dgnet_keras.adjacencies import adjacency
from dgnet_keras.backbones.base import Backbone as KerasBackbone
from dgnet_keras.backbones.model import construction_scope
from dgnet_keras.convert import is_wiring_weight
from dgnet_keras.layers.options import GraphOptions
from dgnet_keras.variants import create

if TYPE_CHECKING:
    from official.vision.configs import common


# Model Garden's configurations are mutable, so they cannot inherit from the options themselves.
_GraphConfig: Any = dataclasses.make_dataclass(
    "_GraphConfig",
    [(f.name, f.type, f.default) for f in dataclasses.fields(GraphOptions)],
    bases=(hyperparams.Config,),
)


@dataclasses.dataclass
class DGNet(_GraphConfig):
    """Model Garden's configuration of a backbone of this package.

    It has the fields of `layers.GraphOptions`, and:

    Attributes:
        name: one of `dgnet_keras.list_variants()`.
        seed: see `dgnet_keras.create`.
        macs_target: likewise: a budget of the backbone's multiply-adds.
        macs_weight: likewise.
        weights: file that the backbone's weights are read from, or None.
        overrides: fields of the family's Spec, such as `{"depths": [2, 2, 2, 2]}`, or None.
    """

    name: str = "resnet50"
    seed: int = 0
    macs_target: float | None = None
    macs_weight: float = 10.0
    weights: str | None = None
    overrides: hyperparams.Config | None = None

    def create(
        self,
        input_shape: Sequence[int | None] = (None, None, 3),
        dtype: str | keras.DTypePolicy = "float32",
    ) -> KerasBackbone:
        """The Keras 3 backbone."""
        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(DGNet)}
        name, overrides = options.pop("name"), options.pop("overrides")
        overrides = overrides.as_dict() if overrides else {}
        with construction_scope(self.seed, dtype):
            return create(name, num_classes=None, input_shape=input_shape, **options, **overrides)


@dataclasses.dataclass
class Backbone(backbone_configs.Backbone):
    """Model Garden's choice of a backbone, with `dgnet` as one more type."""

    dgnet: DGNet = dataclasses.field(default_factory=DGNet)


class GardenBackbone(tf_keras.layers.Layer):
    """A tf_keras layer around a Keras 3 backbone: images to the feature maps of its pyramid.

    The Keras 3 model stays the owner of everything: this layer passes its variables on (so that
    tf_keras optimizers, `tf.train.Checkpoint` and `tf.distribute` see them), its losses, that of
    its budget included (in training, unless frozen), and whether it is frozen.

    Args:
        backbone: a built `dgnet_keras` backbone.
        input_shape: (height, width, 3), of the images that `output_specs` are for.
        kernel_regularizer: tf_keras regularizer of the convolutions' kernels, or None. Routers,
            biases and normalisation are not regularized.

    Call arguments:
        images: normalised as ImageNet's, (batch, height, width, 3).
        training: whether normalisation uses the batch's statistics, and moves its own. Never
            while `trainable` is False.

    Returns:
        Dict of level, `"2"` to `"5"` as a rule, to features (batch, height / 2^level,
        width / 2^level, channels).

    Attributes:
        backbone: the Keras 3 backbone.
        output_specs: dict of level to `tf.TensorShape` (None, height, width, channels).

    Raises:
        ValueError: if tf_keras is set to another data format than `channels_last`.
    """

    def __init__(
        self,
        backbone: KerasBackbone,
        *,
        input_shape: Sequence[int | None],
        kernel_regularizer: tf_keras.regularizers.Regularizer | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(name=kwargs.pop("name", backbone.name), **kwargs)
        if tf_keras.backend.image_data_format() != "channels_last":
            raise ValueError(
                "Model Garden builds detectors as tf_keras is set to: `image_data_format` must be "
                "'channels_last', in ~/.keras/keras.json or by tf_keras.backend."
                f"set_image_data_format. Received: {tf_keras.backend.image_data_format()!r}"
            )
        levels = {name.removeprefix("P"): x for name, x in backbone.pyramid_outputs.items()}
        # Not by attribute assignment: tf_keras would track a part of their variables.
        object.__setattr__(self, "backbone", backbone)
        object.__setattr__(self, "_pyramid", keras.Model(backbone.input, levels))
        # By path, so that checkpoints can be read without this class.
        self.variables_by_path = {v.path: v.value for v in self._pyramid.weights}
        self._input_shape = tuple(input_shape)
        self._kernel_regularizer: Any = kernel_regularizer  # a function, or None
        if kernel_regularizer is not None:
            self.add_loss(self._regularization_loss)
        outputs = self._pyramid.compute_output_spec(
            keras.KerasTensor((None, *input_shape), "float32")
        )
        self.output_specs = {level: tf.TensorShape(x.shape) for level, x in outputs.items()}

    @property
    def trainable_weights(self) -> list[tf.Variable]:
        """The variables that are trained; none if this layer or the backbone is frozen."""
        if not self.trainable:
            return []
        return [v.value for v in self._pyramid.trainable_variables]

    @property
    def non_trainable_weights(self) -> list[tf.Variable]:
        """Moving statistics, and what is frozen."""
        trained = {id(v) for v in self.trainable_weights}
        return [v.value for v in self._pyramid.weights if id(v.value) not in trained]

    def _regularization_loss(self):
        """Of frozen kernels too, where it is a constant, as in tf_keras's own layers."""
        kernels = [
            v.value
            for v in self._pyramid.weights
            if v.name == "kernel" and not is_wiring_weight(v.path)
        ]
        regularizer = self._kernel_regularizer
        return tf.add_n([regularizer(tf.cast(k, tf.float32)) for k in kernels])

    def call(self, images: tf.Tensor, training: bool | None = None) -> dict[str, tf.Tensor]:
        """Features by level."""
        training = bool(training) and self.trainable
        budget = self.backbone.budget
        if budget is None or not (training or budget.is_measuring):
            return self._pyramid(images, training=training)
        features, found = self._with_adjacency(images, training=training)
        loss, _ = self.backbone.measure_budget(images, found)
        if training:
            self.add_loss(loss)
        return features

    @functools.cached_property
    def _with_adjacency(self):
        """The pyramid with the images' adjacency."""
        found = dict(self.backbone.adjacency_outputs)
        return keras.Model(self.backbone.input, [self._pyramid.output, found])

    def adjacency(self, images: ArrayLike, *, batch_size: int = 8) -> dict[str, np.ndarray]:
        """The connectivity that images take, see `dgnet_keras.adjacency`.

        Args:
            images: as the layer takes them, NumPy (batch, height, width, 3).
            batch_size: images computed at a time.
        """
        return adjacency(self.backbone, np.asarray(images), batch_size=batch_size)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, the backbone serialised."""
        regularizer = self._kernel_regularizer
        return {
            **super().get_config(),
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "input_shape": list(self._input_shape),
            "kernel_regularizer": tf_keras.regularizers.serialize(regularizer),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Rebuilds the layer; its weights are new."""
        config = dict(config)
        config["backbone"] = keras.saving.deserialize_keras_object(config["backbone"])
        regularizer = config["kernel_regularizer"]
        config["kernel_regularizer"] = tf_keras.regularizers.deserialize(regularizer)
        return cls(**config)


@factory.register_backbone_builder("dgnet")
def build_dgnet(
    input_specs: tf_keras.layers.InputSpec,
    backbone_config: Backbone,
    norm_activation_config: "common.NormActivation",
    l2_regularizer: tf_keras.regularizers.Regularizer | None = None,
) -> GardenBackbone:
    """Builds a backbone for Model Garden; see `official.vision.modeling.backbones.factory`.

    Of `norm_activation_config` it follows `use_sync_bn` and `norm_momentum`. Activations and
    the normalisation's epsilon stay those of the variant, which its weights were trained with.

    Args:
        input_specs: `tf_keras.layers.InputSpec` of (batch, height, width, 3).
        backbone_config: a `Backbone` whose type is `"dgnet"`.
        norm_activation_config: `official.vision.configs.common.NormActivation`.
        l2_regularizer: tf_keras regularizer of the kernels, or None.

    Returns:
        A `GardenBackbone`, in tf_keras's global dtype policy.
    """
    policy = tf_keras.mixed_precision.global_policy().name
    backbone = backbone_config.get().create(dtype=policy)
    for layer in backbone._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = norm_activation_config.use_sync_bn
            layer.momentum = norm_activation_config.norm_momentum
    return GardenBackbone(
        backbone,
        input_shape=tuple(input_specs.shape[1:]),
        kernel_regularizer=l2_regularizer,
    )


# Model Garden's experiments look the class up when they are made: those made from now on know
# the type.
backbone_configs.Backbone = Backbone


def feature_pyramid(
    backbone: KerasBackbone, levels: Sequence[str] = ("P3", "P4", "P5")
) -> keras.Model:
    """A backbone as the feature extractor of KerasCV's and KerasHub's detectors.

    Args:
        backbone: a `dgnet_keras` backbone.
        levels: names of `backbone.pyramid_outputs`.

    Returns:
        A `keras.Model` of images to a dict of level to features, with the attribute
        `pyramid_level_inputs` that `keras_cv.models.RetinaNet` asks for.

    Raises:
        ValueError: if the backbone lacks a level.
    """
    missing = [level for level in levels if level not in backbone.pyramid_outputs]
    if missing:
        raise ValueError(
            f"{backbone.name} has the levels {', '.join(backbone.pyramid_outputs)}. "
            f"Received: levels={tuple(levels)}"
        )
    outputs = {  # KerasCV looks for layers by name
        level: keras.layers.Identity(name=level)(backbone.pyramid_outputs[level])
        for level in levels
    }
    model = keras.Model(backbone.input, outputs, name=f"{backbone.name}_pyramid")
    model.pyramid_level_inputs = {level: level for level in levels}
    return model
