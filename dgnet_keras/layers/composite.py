"""Layers made of layers whose config keeps what was changed on the inner ones."""

import json
from collections.abc import Mapping
from typing import Any, TypeVar

import keras

from dgnet_keras.layers.initializers import unseeded

# What leads from one config to another: {key: change} for a dict or list, ["=", value] for a value.
Change = Mapping[str, Any] | list[Any]

# What Keras raises for a layer without a config, or with one that no file can hold.
NO_CONFIG = (NotImplementedError, TypeError)

_Layer = TypeVar("_Layer", bound=keras.layers.Layer)


def config_of(layer: keras.layers.Layer) -> dict[str, Any]:
    """The layer's config with everything in it serialised, as a file has it."""
    return _as_in_a_file(keras.saving.serialize_keras_object(layer)["config"])


def _as_in_a_file(config):
    """With lists for tuples, and without the numbers that Keras gives to objects it has seen."""

    def without_id(part):
        return {key: value for key, value in part.items() if key != "shared_object_id"}

    return json.loads(json.dumps(config), object_hook=without_id)


def serialized(layer: keras.layers.Layer) -> dict[str, Any]:
    """The layer as `keras.saving.deserialize_keras_object` takes it, to be built by its parent.

    Keras would build it while it deserialises, and its weights would miss the parent's path.
    """
    config = keras.saving.serialize_keras_object(layer)
    config.pop("build_config", None)
    return config


def difference(before: Any, after: Any) -> Change:
    """What leads from one JSON-like value to another; empty if they are equal."""
    if isinstance(before, dict) and isinstance(after, dict) and before.keys() <= after.keys():
        pairs = {key: (before.get(key), value) for key, value in after.items()}
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = {str(i): pair for i, pair in enumerate(zip(before, after, strict=True))}
    else:
        return {} if before == after else ["=", after]
    found = {key: difference(*pair) for key, pair in pairs.items()}
    return {key: change for key, change in found.items() if change}


def changed(before: Any, change: Change) -> Any:
    """The value that `change` leads to; it is one that `difference` gave."""
    if isinstance(change, list):
        return change[1]
    if isinstance(before, list):
        return [changed(value, change.get(str(i), {})) for i, value in enumerate(before)]
    if not change:
        return before
    return {**before, **{key: changed(before.get(key), inner) for key, inner in change.items()}}


def remade(layer: _Layer, change: Change) -> _Layer:
    """A layer of the same config but for `change`, not built yet."""
    with unseeded():
        return type(layer).from_config(changed(config_of(layer), change))


def _with_change(layer, change):
    try:
        return remade(layer, change)
    except NO_CONFIG:  # see `Made`
        layer.trainable = changed({"trainable": layer.trainable}, change)["trainable"]
        return layer


def _without_seeds(config):
    """The config of a layer whose initializers, and those inside, have drawn no seeds."""
    if isinstance(config, dict):
        items = ((k, v) for k, v in config.items() if k != "changes")
        return {k: None if k == "seed" else _without_seeds(v) for k, v in items}
    return [_without_seeds(v) for v in config] if isinstance(config, list) else config


def settle_flags(layer: keras.layers.Layer) -> None:
    """Freezes the layers inside a frozen one, where its config does not speak of them."""
    if not layer.trainable and not isinstance(layer, Composite | keras.Model):
        for inner in layer._flatten_layers(include_self=False):
            inner.trainable = False


class Made:
    """The layers that another one makes, and what was changed on them since.

    Changed means all that a layer's config holds: whether it is trainable, its dtype policy,
    quantization, regularizers, constraints, initializers, rates, and the same of layers inside. Of
    a layer of the user's that has no config it is `trainable`, where code makes that layer again.

    Args:
        changes: dict of a layer's key to the change of its config, as `changes` gave it; None
            of a new one.
        seeds: whether whoever makes the layers again draws the same seeds for them.
    """

    def __init__(self, changes: Mapping[str, Change] | None, *, seeds: bool) -> None:
        self.is_copy = changes is not None
        self._seeds = seeds
        self._given = dict(changes or {})
        self._made: dict[str, tuple[keras.layers.Layer, dict[str, Any]]] = {}

    def add(self, layer: _Layer, key: str | None = None) -> _Layer:
        """Takes in a layer as it was made, not built; returns it, or one changed as was given."""
        key = layer.name if key is None else key
        try:
            config = self._config(layer)
        except NO_CONFIG:  # it is said when the model is saved, as Keras does
            config = {}
        if key in self._given:
            layer = _with_change(layer, self._given[key])
        self._made[key] = layer, config if self._seeds else _without_seeds(config)
        return layer

    def _config(self, layer):
        try:
            return config_of(layer)
        except NO_CONFIG:
            if self._seeds:
                raise
            return {"trainable": layer.trainable}

    def expects(self, prefix: str) -> bool:
        """Whether a change was given for a key that begins so."""
        return any(key.startswith(prefix) for key in self._given)

    def check(self) -> None:
        """Raises `ValueError` if a change was given for a layer that was not made."""
        if missing := sorted(self._given.keys() - self._made.keys()):
            raise ValueError(
                f"`changes` must be of layers that there are: {sorted(self._made)}. "
                f"Received changes of {missing}"
            )

    def changes(self, maker: keras.layers.Layer | None = None) -> dict[str, Change]:
        """Changes by key, of the layers that have any.

        Args:
            maker: a layer whose policy and flag the layers would be made with now; None: as they
                were.
        """
        self.check()
        now = {}
        if maker is not None:
            now["dtype"] = _as_in_a_file(keras.dtype_policies.serialize(maker.dtype_policy))
            now["trainable"] = maker.trainable
        found = {}
        for key, (layer, config) in self._made.items():
            expected = {k: now.get(k, value) for k, value in config.items()}
            found[key] = difference(expected, self._config(layer))
        return {key: change for key, change in found.items() if change}


class Composite(keras.layers.Layer):
    """A layer made of named sub-layers, which copies keep as they are now.

    A subclass makes its sub-layers with `self._layer(cls, name, ...)`, which gives them this
    layer's dtype policy. What a user then changes on one, `layer.conv.trainable = False` say, is
    in this layer's config, so that a saved, cloned or copied layer has it too.

    Args:
        changes: dict of a sub-layer's name to the change of its config, as `get_config` gives it.
        **kwargs: those of `keras.layers.Layer`.
    """

    def __init__(self, *, changes: Mapping[str, Change] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._made = Made(changes, seeds=False)

    def _layer(self, cls, name, *args, **kwargs):
        layer = cls(*args, name=name, dtype=self.dtype_policy, **kwargs)
        return self._keep(layer)

    def _keep(self, layer):
        """Takes in a layer as it was made: frozen, where this one is."""
        if not self.trainable:
            layer.trainable = False
        return self._track(self._made.add(layer))

    def _track(self, part):
        """Has `tf.train.Checkpoint` see what is kept in a list or dict: Keras does not."""
        self._track_trackable(part, part.name, overwrite=True)
        return part

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, and what was changed on sub-layers if anything was."""
        changes = self._made.changes(self)
        return {**super().get_config(), **({"changes": changes} if changes else {})}
