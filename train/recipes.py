"""What recipes of every kind share: keys checked where they are declared, `key=value`, JSON.

A recipe is a frozen dataclass whose type hints say which values a key takes.
"""

import dataclasses
import json
import types
import typing

from dgnet_keras.checks import closest
from dgnet_keras.layers.gates import gates
from dgnet_keras.layers.options import GraphOptions
from dgnet_keras.layers.wiring import wirings


def shown(value):
    """A recipe's value as JSON, the way `--set` takes it and `config.json` holds it."""
    return json.dumps(value, default=repr)


@dataclasses.dataclass(frozen=True)
class Interval:
    """The numbers that a key takes, declared as `Annotated[float, Interval("[0, 1)")]`.

    Attributes:
        text: as in mathematics: `"[0, 1)"` holds 0, but not 1. NaN is in no interval.
    """

    text: str

    def check(self, name, value):
        """Raises `ValueError` unless the value is in the interval."""
        low, high = map(float, self.text[1:-1].split(","))
        above = low <= value if self.text[0] == "[" else low < value
        below = value <= high if self.text[-1] == "]" else value < high
        if not (above and below):
            raise ValueError(f"`{name}` must be in {self.text}. Received: {shown(value)}")


Count = typing.Annotated[int, Interval("[1, inf)")]
Whole = typing.Annotated[int, Interval("[0, inf)")]
Seed = typing.Annotated[int, Interval("[0, 4294967296)")]
Amount = typing.Annotated[float, Interval("[0, inf)")]
Share = typing.Annotated[float, Interval("[0, 1)")]
Probability = typing.Annotated[float, Interval("[0, 1]")]
ClipNorm = typing.Annotated[float | None, Interval("(0, inf)")]
Means = tuple[Probability, ...] | None
Deviations = tuple[typing.Annotated[float, Interval("(0, 1]")], ...] | None
DType = typing.Literal["float32", "mixed_bfloat16", "mixed_float16"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckedRecipe(GraphOptions):
    """A recipe whose fields are checked when it is made.

    A field's hint is `bool`, `int`, `float`, `str`, `dict`, a tuple of them (a list is made one),
    one of these `| None`, or with an `Interval`, or a `Literal`. Whole numbers are made floats
    where the hint is one.

    Raises:
        ValueError: naming the first field that has another value.
    """

    FORMAT: typing.ClassVar[int]

    def __post_init__(self):
        hints = typing.get_type_hints(type(self), include_extras=True) | _graph_hints()
        for field in dataclasses.fields(self):
            value = _checked(field.name, getattr(self, field.name), hints[field.name])
            object.__setattr__(self, field.name, value)
        super().__post_init__()

    def to_json(self):
        """The recipe as indented JSON, with a format number."""
        content = {"format": self.FORMAT, **dataclasses.asdict(self)}
        content["threshold"] = self.resolved_threshold
        return json.dumps(content, indent=2) + "\n"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BudgetedRecipe(CheckedRecipe):
    """A recipe whose network can be brought to a share of its multiply-adds.

    Attributes:
        macs_target: share of the static twin's multiply-adds that training is to reach, in (0, 1],
            or None. In detection those of the backbone.
        macs_weight: of the loss for it; see `dgnet_keras.budget.Budget`.
        macs_start: target at the beginning; `macs_target` itself where a run goes on from another.
        macs_fall: share of the run in which the target comes down.
        macs_floor: share of a batch that each block is to be taken by at first; it comes down to
            0 in the first third of the run.
        noise_off: last share of the run, in which the choice of paths has no noise.
    """

    macs_target: typing.Annotated[float | None, Interval("(0, 1]")] = None
    macs_weight: Amount = 10.0
    macs_start: typing.Annotated[float, Interval("(0, 1]")] = 1.0
    macs_fall: Probability = 0.5
    macs_floor: Probability = 0.25
    noise_off: Probability = 0.2

    def schedule(self):
        """Dict of the arguments of `dgnet_keras.budget.Pressure.at`, but for the progress."""
        return {
            "target": self.macs_target,
            "start": self.macs_start,
            "fall": self.macs_fall,
            "quiet": self.noise_off,
            "floor": self.macs_floor,
        }


def _graph_hints():
    """Hints of what `GraphOptions` checks itself, for errors that show JSON."""
    return {
        "wiring": typing.Literal[wirings()],
        "gate": typing.Literal[gates()],
        "max_nodes": typing.Annotated[int | None, Interval("[2, inf)")],
    }


def _checked(name, value, hint):
    """The value as its field's type hint has it; `ValueError` if it is another."""
    hint, *intervals = typing.get_args(hint) if hasattr(hint, "__metadata__") else (hint,)
    optional = typing.get_origin(hint) in (types.UnionType, typing.Union)
    if optional and value is None:
        return None
    whole, hint = hint, typing.get_args(hint)[0] if optional else hint
    kind, entries = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind is typing.Literal:
        if value not in entries:
            choices, hint = ", ".join(map(shown, entries)), closest(value, entries)
            raise ValueError(f"`{name}` must be one of {choices}.{hint} Received: {shown(value)}")
        return value
    if kind is tuple and isinstance(value, list):
        value = tuple(value)
    if kind is float and type(value) is int:
        value = float(value)
    fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if fits and kind is tuple:
        entries = entries[:1] * len(value) if entries[-1] is Ellipsis else entries
        fits = len(value) == len(entries)
    if not fits:
        raise ValueError(f"`{name}` must be of type {_said(whole)}. Received: {shown(value)}")
    if kind is tuple:
        pairs = enumerate(zip(value, entries, strict=True))
        value = tuple(_checked(f"{name}[{k}]", entry, hint) for k, (entry, hint) in pairs)
    for interval in intervals:
        interval.check(name, value)
    return value


def _said(hint):
    """A type hint as JSON's values are written, such as `[int, ...] or null`."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hasattr(hint, "__metadata__"):
        return _said(parts[0])
    if origin is tuple:
        return f"[{', '.join(map(_said, parts))}]"
    if parts:
        return " or ".join(map(_said, parts))
    names = {Ellipsis: "...", types.NoneType: "null", bool: "bool (true or false)"}
    return names.get(hint) or hint.__name__


def check_statistics(mean, std, channels):
    """Raises `ValueError` unless both are None, or have a value a channel, or one for all."""
    lengths = [None if values is None else len(values) for values in (mean, std)]
    if lengths not in ([None, None], [1, 1], [channels, channels]):
        raise ValueError(
            f"`mean` and `std` must be set together, with a value for each of {channels} channels "
            f"or one for all. Received: mean={shown(mean)}, std={shown(std)}"
        )


def get_recipe(name, overrides, recipes):
    """A recipe by name, with `key=value` strings applied.

    Args:
        name: a key of `recipes`.
        overrides: strings `"key=value"`; the value is JSON, or else a plain string.
            `model_overrides.depths=[2,2,2]` sets one entry of a dict. The recipe is checked with
            all of them.
        recipes: dict of name to a frozen dataclass.

    Raises:
        ValueError: for an unknown recipe or key (names the closest), or a value that the key does
            not take.
    """
    if name not in recipes:
        raise ValueError(
            f"Unknown recipe {name!r}.{closest(name, recipes)} Recipes: {', '.join(recipes)}"
        )
    recipe = recipes[name]
    changes = {}
    for item in overrides:
        changes |= _change(recipe, changes, item)
    return dataclasses.replace(recipe, **changes)


def _change(recipe, changes, item):
    """Key and value of a `"key=value"`, after earlier changes; the value is not checked yet."""
    key, separator, text = item.partition("=")
    if not separator:
        raise ValueError(f"An override is written key=value. Received: {item!r}")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    key, _, entry = key.partition(".")
    fields = [field.name for field in dataclasses.fields(recipe)]
    if key not in fields:
        raise ValueError(
            f"Unknown key {key!r}.{closest(key, fields)} Keys of a recipe: {', '.join(fields)}"
        )
    if entry:
        before = changes.get(key, getattr(recipe, key))
        if not isinstance(before, dict):
            raise ValueError(f"`{key}` has no entries to set. Received: {item!r}")
        value = {**before, entry: value}
    return {key: value}
