"""Classifier: backbone, global average pooling, dropout and dense."""

from collections.abc import Mapping
from typing import Any, Self

import keras

from dgnet_keras.backbones.base import Backbone
from dgnet_keras.backbones.model import GraphModel, construction_scope
from dgnet_keras.budget import check_spread, doubt_of
from dgnet_keras.checks import is_integer, is_number
from dgnet_keras.distillation import Distillation
from dgnet_keras.layers.composite import Change, Made
from dgnet_keras.layers.initializers import next_seed
from dgnet_keras.preprocessing import Preprocessing


@keras.saving.register_keras_serializable(package="dgnet_keras")
class Classifier(GraphModel):
    """Backbone, global average pooling, dropout, dense: images to float32 logits.

    Args:
        backbone: a `Backbone`.
        num_classes: number of classes.
        dropout: rate before the dense layer.
        name: of the model; None means the backbone's name.
        trainable: False freezes all layers.
        changes: of a copy: what was changed on its layers, as `get_config` gives it.
        macs_target: share of the static twin's multiply-adds that training is to reach, in (0, 1],
            or None; see `budget.Budget`. An attribute too, that can be set.
        macs_weight: what the loss of this budget is multiplied by; likewise.
        macs_spread: half of the range of the images' own targets, in [0, 1): images in doubt may
            compute more than `macs_target`, others less; likewise.

    Call arguments:
        images: preprocessed images (see `preprocessing`), (batch, height, width, channels).

    Returns:
        Logits, float32 (batch, num_classes), under every dtype policy.

    Attributes:
        backbone: the `Backbone`: all but the classifier.

    Raises:
        ValueError: if `num_classes` is not a positive integer, `dropout` not in [0, 1), or the
            backbone none of this package, or with a `macs_target` of its own.
    """

    _distillation: Distillation | None = None

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        dropout: float = 0.0,
        name: str | None = None,
        trainable: bool = True,
        changes: Mapping[str, Change] | None = None,
        macs_target: float | None = None,
        macs_weight: float = 10.0,
        macs_spread: float = 0.0,
    ) -> None:
        if not isinstance(backbone, Backbone):
            raise ValueError(f"`backbone` must be a backbone of dgnet_keras. Received: {backbone}")
        if not is_number(dropout) or not 0 <= dropout < 1:
            raise ValueError(f"`dropout` must be in [0, 1). Received: dropout={dropout!r}")
        if not is_integer(num_classes) or num_classes < 1:
            raise ValueError(
                "`num_classes` must be a positive integer, or None in `create` for the backbone. "
                f"Received: num_classes={num_classes!r}"
            )
        num_classes = int(num_classes)  # Keras does not save NumPy's
        made = Made(changes, seeds=True)
        with construction_scope(backbone.seed, "float32"):
            layers = [keras.layers.GlobalAveragePooling2D("channels_last", name="pool")]
            if dropout:
                layers.append(keras.layers.Dropout(dropout, seed=next_seed(), name="dropout"))
            initializer = keras.initializers.RandomNormal(stddev=0.01, seed=next_seed())
            layers.append(
                keras.layers.Dense(num_classes, name="logits", kernel_initializer=initializer)
            )
            x = backbone.output
            for layer in layers:
                x = made.add(layer)(x)
        if backbone.macs_target is not None:
            raise ValueError(
                "The budget of a classifier is its own: give `macs_target` to the classifier, and "
                f"none to its backbone. Received: a backbone of macs_target={backbone.macs_target}"
            )
        super().__init__(
            backbone.input,
            x,
            name=name or backbone.name,
            dtype=backbone.dtype_policy,
            trainable=trainable,
            made=made,
        )
        self.backbone = backbone
        self.num_classes = num_classes
        self.dropout = dropout
        self.macs_weight = macs_weight
        self.macs_spread = macs_spread
        self.macs_target = macs_target

    def distill_from(
        self, teacher: keras.Model | None, *, weight: float = 1.0, temperature: float = 1.0
    ) -> None:
        """Has training learn from a teacher's probabilities besides the labels.

        To the loss comes `weight` times `distillation.divergence` from them, mean over the images,
        which the teacher sees as this model does, augmented. With `macs_spread`, the doubt is the
        teacher's. Sample weights do not count in it. The teacher is not trained, no part of this
        model, and not saved with it. A model of Keras's that holds this one must be compiled again.

        Args:
            teacher: a model of the same preprocessed images to logits of the same classes, such as
                the static network that this one started from; None ends it.
            weight: of this loss, at least 0.
            temperature: that both models' logits are divided by, above 0.

        Raises:
            ValueError: for a value out of range, or a teacher that is this model, takes other
                images, has other classes or another mean and standard deviation.
        """
        found = None if teacher is None else Distillation(teacher, weight, temperature)
        if found is not None:
            found.check_fits(self)
        self._set("_distillation", found)
        self._trace_anew()

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """As of `GraphModel`; in training it adds the loss of `distill_from`."""
        distillation = self._distillation if training else None
        if distillation is None:
            return super().call(inputs, training=training, mask=mask)
        (images,) = keras.tree.flatten(inputs)
        wanted = distillation.answers(images)
        outputs = self._call(inputs, training, mask, doubt=doubt_of(wanted))
        self._add_loss(distillation.loss(wanted, outputs))
        return outputs

    @property
    def macs_spread(self) -> float:
        """Half of the range of the images' own targets; see `budget.Budget`. Settable."""
        return self._macs_spread

    @macs_spread.setter
    def macs_spread(self, value: float) -> None:
        check_spread(value)
        if value and self.num_classes == 1:
            raise ValueError(
                "`macs_spread` goes by a classifier's doubt, and the softmax of one class has "
                f"none. Received: num_classes=1, macs_spread={value!r}"
            )
        self._set("_macs_spread", value)
        if self.budget is not None:
            self.budget.set_spread(value)

    def _doubt(self, outputs):
        return doubt_of(outputs)

    @property
    def preprocessing(self) -> Preprocessing:
        """Resize, crop, mean and standard deviation: the backbone's."""
        return self.backbone.preprocessing

    @preprocessing.setter
    def preprocessing(self, value: Preprocessing) -> None:
        self.backbone.preprocessing = value

    @property
    def wiring(self) -> str:
        """The wiring of the graph stages: the backbone's."""
        return self.backbone.wiring

    @property
    def adjacency_outputs(self) -> dict[str, keras.KerasTensor]:
        """Symbolic adjacency of each stage with edges: the backbone's."""
        return self.backbone.adjacency_outputs

    @property
    def pyramid_outputs(self) -> dict[str, keras.KerasTensor]:
        """Symbolic feature maps by level: the backbone's."""
        return self.backbone.pyramid_outputs

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, the backbone serialised."""
        return {
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "num_classes": self.num_classes,
            "dropout": self.dropout,
            "macs_spread": self.macs_spread,
            **super().get_config(),
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: Mapping[str, Any] | None = None
    ) -> Self:
        """Rebuilds the classifier with its backbone."""
        config = dict(config)
        frozen = config.pop("frozen", ())  # in files made before changes were kept
        config["backbone"] = keras.saving.deserialize_keras_object(
            config["backbone"], custom_objects
        )
        config["backbone"].macs_target = None  # older files had it, and it did nothing
        if config["num_classes"] == 1:  # likewise
            config["macs_spread"] = 0.0
        classifier = cls(**config)
        if frozen:
            classifier.freeze(frozen)
        return classifier
