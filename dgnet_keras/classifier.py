"""Classifier, and `create`: a model by its name."""

import dataclasses
import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any, Self, Unpack, overload

import keras

from dgnet_keras.backbones import FAMILIES
from dgnet_keras.backbones.base import Backbone, Spec
from dgnet_keras.backbones.model import GraphModel, construction_scope
from dgnet_keras.budget import check_spread, doubt_of
from dgnet_keras.checks import closest, is_integer, is_number
from dgnet_keras.convert import is_static, load_weights
from dgnet_keras.distillation import Distillation
from dgnet_keras.layers.composite import Change, Made
from dgnet_keras.layers.graph import trace_anew
from dgnet_keras.layers.initializers import next_seed
from dgnet_keras.layers.options import GraphKeywords, GraphOptions, shows_graph_options
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
            backbone none of this package.
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
        model, and not saved with it.

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
        trace_anew(self)

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """As of `GraphModel`; in training it adds the loss of `distill_from`."""
        distillation = self._distillation if training else None
        if distillation is None:
            return super().call(inputs, training=training, mask=mask)
        wanted = distillation.answers(inputs)
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
        classifier = cls(**config)
        if frozen:
            classifier.freeze(frozen)
        return classifier


def list_variants(family: str | None = None) -> list[str]:
    """Names of the variants, in table order.

    Args:
        family: `"resnet"`, ...; None means all families.

    Returns:
        List of names that `create` takes.

    Raises:
        ValueError: for an unknown family.
    """
    families = {cls.family: cls for cls in FAMILIES}
    if family is not None and family not in families:
        raise ValueError(f"Unknown family {family!r}. Families are: {', '.join(families)}")
    chosen = families.values() if family is None else [families[family]]
    return [name for cls in chosen for name in cls.variants]


def family_of(name: str) -> type[Backbone]:
    """The backbone class that has the variant `name`.

    Raises:
        ValueError: for an unknown variant; the message names the closest ones.
    """
    for cls in FAMILIES:
        if name in cls.variants:
            return cls
    raise ValueError(
        f"Unknown variant {name!r}.{closest(name, list_variants())} "
        "`dgnet_keras.list_variants()` lists all."
    )


class CreateKeywords(GraphKeywords, total=False):
    """The keyword arguments of `create` but for `num_classes`, for type checkers and editors."""

    input_shape: Sequence[int | None]
    seed: int
    weights: str | os.PathLike[str] | None
    macs_target: float | None
    macs_weight: float
    macs_spread: float


@overload
def create(
    name: str, *, num_classes: int = ..., **options: Unpack[CreateKeywords]
) -> Classifier: ...
@overload
def create(name: str, *, num_classes: None, **options: Unpack[CreateKeywords]) -> Backbone: ...
@overload
def create(name: str, *, num_classes: int = ..., **options: Any) -> Classifier: ...
@overload
def create(name: str, *, num_classes: None, **options: Any) -> Backbone: ...


@shows_graph_options
def create(
    name: str,
    *,
    num_classes: int | None = 1000,
    input_shape: Sequence[int | None] = (224, 224, 3),
    seed: int = 0,
    weights: str | os.PathLike[str] | None = None,
    macs_target: float | None = None,
    macs_weight: float = 10.0,
    macs_spread: float = 0.0,
    **options: Any,
) -> Classifier | Backbone:
    """Creates a model by the name of its variant.

    Args:
        name: one of `list_variants()`, such as `"resnet50"` or `"resnet20_cifar"`.
        num_classes: number of classes; None gives the backbone without a classifier.
        input_shape: (height, width, channels) in pixels; height and width may be None.
        seed: of the initial weights and of random wiring; at least 0.
        weights: path of a `.weights.h5`, `.keras` or timm `.safetensors` file, a hub name, or
            None; see `convert.load_weights`. Of a static network, they make `init="static"` the
            default.
        macs_target: share of the static twin's multiply-adds that training is to reach, in (0, 1],
            or None; see `budget.Budget`.
        macs_weight: what the loss of this budget is multiplied by.
        macs_spread: half of the range of the images' own targets, in [0, 1), see `budget.Budget`:
            images in doubt may compute more than `macs_target`, others less. For classifiers.
        **options: fields of `layers.GraphOptions` (`wiring`, `threshold`, `edge_scale`, `init`,
            `gate`, `learn_threshold`, `max_nodes`), and of the family's Spec, such as `depths`,
            `widths`, `stem_strides`.

    Returns:
        A `Classifier` (logits, float32), or the backbone if `num_classes` is None.

    Raises:
        ValueError: for an unknown variant or option, or a value out of range; the message says
            what was expected and what was received.
    """
    family = family_of(name)
    graph = {key: options.pop(key) for key in GraphOptions.names() if key in options}
    if weights is not None and is_static(weights):
        graph = {"init": "static", **graph}
    backbone = family(
        _override(name, family.variants[name], options),
        input_shape=input_shape,
        seed=seed,
        name=name,
        **graph,
    )
    model = backbone if num_classes is None else Classifier(backbone, num_classes)
    model.macs_weight = macs_weight
    if isinstance(model, Classifier):
        model.macs_spread = macs_spread
    elif macs_spread:
        raise ValueError(
            "`macs_spread` goes by a classifier's doubt: a backbone has none. "
            f"Received: num_classes=None, macs_spread={macs_spread!r}"
        )
    model.macs_target = macs_target
    if weights is not None:
        load_weights(model, weights)
    return model


def _override(name, spec, overrides):
    is_spec = isinstance(spec, Spec)  # the families' Specs are dataclasses, their base is none
    if not is_spec:
        raise ValueError(f"The variant {name!r} must be a Spec of its family. Received: {spec!r}")
    fields = [field.name for field in dataclasses.fields(spec)]
    for key in overrides:
        if key not in fields:
            options = list(inspect.signature(create).parameters)[1:-1]
            raise ValueError(
                f"Unknown argument {key!r}.{closest(key, [*options, *fields])} "
                f"Options: {', '.join(options)}; fields of {type(spec).__name__}: "
                f"{', '.join(fields)}"
            )
    return dataclasses.replace(spec, **overrides)
