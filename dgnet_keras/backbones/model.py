"""Model of preprocessed images: base of backbones and classifiers."""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import keras
import tensorflow as tf

from dgnet_keras.budget import Budget, check_weight, stages_of
from dgnet_keras.checks import check_preprocessed
from dgnet_keras.complexity import model_costs
from dgnet_keras.layers import exports
from dgnet_keras.layers.composite import Made
from dgnet_keras.layers.graph import trace_anew
from dgnet_keras.layers.initializers import seeded
from dgnet_keras.preprocessing import Preprocessing
from dgnet_keras.user_warnings import warn


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
        dtype: policy that training goes by: under `mixed_float16`, `compile` scales the loss.
        trainable: False freezes all layers. Of a copy, it is the model's own flag alone, since
            its layers have theirs.
        made: the layers that the model makes.
    """

    preprocessing: Preprocessing
    budget: Budget | None
    _macs_spread = 0.0  # of a classifier's budget

    def __init__(
        self,
        inputs: keras.KerasTensor,
        outputs: keras.KerasTensor,
        *,
        name: str | None,
        dtype: keras.DTypePolicy,
        trainable: bool,
        made: Made,
    ) -> None:
        super().__init__(inputs=inputs, outputs=outputs, name=name, trainable=trainable)
        self._set("budget", None)
        for stage in stages_of(self):
            stage.models.add(self)
        self.dtype_policy = dtype
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
        self._set(name, value)

    def _set(self, name, value):
        """Sets an attribute that Keras would count among the model's layers or state."""
        object.__setattr__(self, name, value)

    @property
    def macs_target(self) -> float | None:
        """Share of MACs that training is to reach; None: there is no loss for it. Settable.

        A model of Keras's that holds this one, other than `with_preprocessing` makes, must then be
        compiled again.
        """
        return None if self.budget is None else self.budget.target

    @macs_target.setter
    def macs_target(self, value: float | None) -> None:
        if self.budget is not None and value is not None:
            self.budget.set_target(self, value)
            return
        holders = (m for s in stages_of(self) for m in s.models if m is not self)
        if value is not None and any(getattr(m, "backbone", None) is self for m in holders):
            warn(
                "The budget of a classifier is its own: one of its backbone counts where the "
                "backbone itself is called, and not in the classifier's training. Set "
                "`macs_target` of the classifier for that."
            )
        parts = self.macs_weight, self._macs_spread
        self._set("budget", None if value is None else Budget(self, value, *parts))
        if self.budget is not None:
            both = keras.Model(self.input, [self.output, dict(self.adjacency_outputs)])
            # As a function: Keras would save the layers by the name of a model's attribute.
            self._set("_with_adjacency", lambda *args, **kwargs: both(*args, **kwargs))
        self._trace_anew()

    def _trace_anew(self):
        """Has every model that shares the stages trace its functions again."""
        for model in {model for stage in stages_of(self) for model in stage.models}:
            trace_anew(model)

    @property
    def macs_weight(self) -> float:
        """What the loss of the budget is multiplied by. Settable."""
        return self._macs_weight

    @macs_weight.setter
    def macs_weight(self, value: float) -> None:
        check_weight(value)
        self._set("_macs_weight", value)
        if self.budget is not None:
            self.budget.set_weight(value)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """As `keras.Model.metrics`, with the share of MACs where there is a budget."""
        return super().metrics + ([] if self.budget is None else [self.budget.share])

    @functools.wraps(keras.Model.fit, assigned=())  # its signature alone
    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.fit`; stopped in the middle, it leaves the target itself in force."""
        try:
            return super().fit(*args, **kwargs)
        except BaseException:  # no callback is told
            if self.budget is not None:
                with contextlib.suppress(tf.errors.OpError):  # on a device that is lost
                    self.budget.reset()
            raise

    def train_step(self, *args: Any) -> Any:
        """As `keras.Model.train_step`; measures the share of MACs where there is a budget."""
        with self._measuring():
            return super().train_step(*args)

    def test_step(self, *args: Any) -> Any:
        """As `keras.Model.test_step`; measures the share of MACs where there is a budget."""
        with self._measuring():
            return super().test_step(*args)

    def _measuring(self):
        return contextlib.nullcontext() if self.budget is None else self.budget.measuring()

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """As `keras.Model.call`; refuses raw images, which Keras would cast without a word."""
        return self._call(inputs, training, mask)

    def _call(self, inputs, training, mask, doubt=None):
        """`call`; `doubt` is that of `call_with_budget`."""
        (images,) = keras.tree.flatten(inputs)
        check_preprocessed(images)
        if self.budget is None or not (training or self.budget.is_measuring):
            return super().call(inputs, training=training, mask=mask)
        outputs, loss, _ = self.call_with_budget(images, training=training, doubt=doubt)
        self._add_loss(loss)
        return outputs

    def _add_loss(self, loss):
        keras.layers.Layer.add_loss(self, loss)  # Functional has none of its own

    def call_with_budget(
        self,
        inputs: tf.Tensor,
        training: bool | None = None,
        doubt: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """The output of a model with a budget, the budget's loss, and the mean share of MACs.

        Args:
            inputs: images.
            training: as in a call.
            doubt: of each image, (batch,), that images' own targets go by; None means what the
                model itself says of it.
        """
        outputs, found = self._with_adjacency(inputs, training=training)
        doubt = self._doubt(outputs) if doubt is None else doubt
        return outputs, *self.measure_budget(inputs, found, doubt)

    def _doubt(self, outputs):
        """Of each image, (batch,), by the model's own output; None where there is no saying."""
        return None

    def measure_budget(
        self,
        inputs: tf.Tensor,
        adjacency: Mapping[str, tf.Tensor],
        doubt: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The budget's loss, and the mean share of MACs, of the adjacency found for images.

        What Keras's loops call `share_of_macs` is updated inside of `budget.measuring()`.
        """
        assert self.budget is not None
        scales = {g.key: s.edge_scale for s in stages_of(self) for g in s.graphs}
        size = None if None in inputs.shape[1:3] else inputs.shape[1:3]
        loss, share = self.budget.measure(model_costs(self, size), adjacency, scales, doubt)
        if self.budget.is_measuring:
            self.budget.share.update_state(share, sample_weight=tf.shape(inputs)[0])
        return loss, share

    def export(self, filepath: Any, format: str = "tf_saved_model", **kwargs: Any) -> None:
        """As `keras.Model.export`; what is not a SavedModel skips as far as its readers can.

        With `"litert"` and `"openvino"` a node is skipped where no sample of a batch takes it, not
        sample by sample. With `"onnx"` every node is computed: `freeze` makes a network that needs
        none of this.
        """
        readers: dict[str, exports.Reader] = {"tf_saved_model": "tensorflow", "onnx": "onnx"}
        with exports.exporting(readers.get(format, "if")):
            super().export(filepath, format=format, **kwargs)

    def with_preprocessing(self) -> keras.Model:
        """The same model, layers shared, behind its `preprocessing` as it is now.

        Returns:
            A `keras.Model` that takes raw images, (batch, height, width, channels) of 0 to 255,
            any size, and answers as `model(model.preprocessing(images))`. The network is its layer
            of this model's name: tools such as `dg.adjacency` take that.
        """
        images = keras.Input((None, None, self.input_shape[-1]), name="raw_images")
        outputs = self(self.preprocessing(images))
        model = keras.Model(images, outputs, name=f"{self.name}_with_preprocessing")
        for stage in stages_of(self):
            stage.models.add(model)
        return model

    def set_threshold(self, threshold: float) -> None:
        """`GraphStage.set_threshold` of each stage."""
        for stage in stages_of(self):
            stage.set_threshold(threshold)

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
        return {
            "name": self.name,
            "trainable": self.trainable,
            "changes": self._made.changes(),
            "macs_target": self.macs_target,
            "macs_weight": self.macs_weight,
        }

    def freeze(self, paths: Sequence[str]) -> None:
        """Sets `trainable` of every layer as an older file says it: False for those at `paths`.

        That of the models is left: in such a file a classifier and its backbone share a path.
        """
        for layer in self._flatten_layers():
            if not isinstance(layer, keras.Model):
                layer.trainable = layer.path not in paths
