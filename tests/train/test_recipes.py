import dataclasses
import json
import math
import typing

import pytest

from train.recipes import CheckedRecipe, Count, Interval, Share, get_recipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cake(CheckedRecipe):
    FORMAT = 7

    eggs: Count
    sugar: Share = 0.5
    oven: typing.Literal["gas", "wood"] = "gas"
    layers: tuple[int, ...] = ()
    size: tuple[int, Share] | None = None
    rum: typing.Annotated[float | None, Interval("(0, 1]")] = None
    toppings: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        super().__post_init__()
        if self.sugar > 0.9 and self.eggs < 2:
            raise ValueError("too sweet")


CAKES = {"sponge": Cake(eggs=3), "torte": Cake(eggs=8, layers=[1, 2])}


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("[1, inf)", (1, 10**9), (0, 0.999, math.inf)),
        ("[0, 1)", (0, 0.999), (-1e-9, 1)),
        ("(0, 1]", (1e-9, 1), (0, 1.001)),
    ],
)
def test_an_interval_holds_what_is_written(text, inside, outside):
    for value in inside:
        Interval(text).check("key", value)
    for value in (*outside, math.nan):
        received = json.dumps(value)
        with pytest.raises(ValueError, match=rf"`key` must be in .{text[1:-1]}.*: {received}$"):
            Interval(text).check("key", value)


def test_values_are_made_what_the_key_declares():
    cake = get_recipe("torte", ["sugar=0", "layers=[3]", "rum=1", "toppings.nuts=2"], CAKES)
    assert (cake.layers, cake.toppings) == ((3,), {"nuts": 2})
    assert [type(value) for value in (cake.sugar, cake.rum)] == [float, float]
    assert get_recipe("torte", ["rum=0.5", "rum=null"], CAKES).rum is None
    assert CAKES["torte"].layers == (1, 2)
    assert str(get_recipe("torte", ["size=[2,0]"], CAKES).size) == "(2, 0.0)"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"eggs": 0}, r"`eggs` must be in \[1, inf\)\. Received: 0"),
        ({"eggs": 2.0}, r"`eggs` must be of type int\. Received: 2\.0"),
        ({"eggs": True}, r"`eggs` must be of type int\. Received: true$"),
        ({"sugar": math.nan}, r"`sugar` must be in \[0, 1\)\. Received: NaN$"),
        ({"sugar": None}, r"`sugar` must be of type float\. Received: null$"),
        ({"rum": math.nan}, r"`rum` must be in \(0, 1\]\. Received: NaN$"),
        ({"rum": "much"}, r"`rum` must be of type float or null\. Received: \"much\"$"),
        ({"oven": "coal"}, r'`oven` must be one of "gas", "wood"\. Received: "coal"$'),
        ({"oven": ["gas"]}, r'`oven` must be one of "gas", "wood"\. .*Received: \["gas"\]$'),
        ({"learn_threshold": "True"}, r'of type bool \(true or false\)\. Received: "True"$'),
        ({"layers": 3}, r"`layers` must be of type \[int, \.\.\.\]\. Received: 3$"),
        ({"layers": (1, 2.5)}, r"`layers\[1\]` must be of type int\. Received: 2\.5$"),
        ({"layers": [True]}, r"`layers\[0\]` must be of type int\. Received: true$"),
        ({"size": (8,)}, r"`size` must be of type \[int, float\] or null\. Received: \[8\]$"),
        ({"size": (8, None)}, r"`size\[1\]` must be of type float\. Received: null$"),
        ({"size": (8, -1)}, r"`size\[1\]` must be in \[0, 1\)\. Received: -1.0$"),
        ({"toppings": []}, r"`toppings` must be of type dict\. Received: \[\]"),
        ({"wiring": 3}, r'`wiring` must be one of "dynamic", .*"complete".*\. Received: 3$'),
        ({"gate": "mask"}, r'`gate` must be .*Did you mean \'masked\'\? Received: "mask"$'),
        ({"max_nodes": 1}, r"`max_nodes` must be in \[2, inf\)\. Received: 1$"),
        ({"sugar": 0.95, "eggs": 1}, "too sweet"),
    ],
)
def test_other_values_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CAKES["sponge"], **changed)


@pytest.mark.parametrize(
    ("name", "item", "message"),
    [
        ("spong", "eggs=2", r"Unknown recipe 'spong'\. Did you mean 'sponge'\? Recipes: sponge, t"),
        ("sponge", "egg=2", r"Unknown key 'egg'\. Did you mean 'eggs'\? Keys of a recipe: .*sugar"),
        ("sponge", "eggs", r"key=value\. Received: 'eggs'"),
        ("sponge", "eggs.white=2", r"`eggs` has no entries to set\. Received: 'eggs\.white=2'"),
    ],
)
def test_mistakes_on_the_command_line_are_named(name, item, message):
    with pytest.raises(ValueError, match=message):
        get_recipe(name, [item], CAKES)


def test_keys_that_go_together_can_be_changed_in_any_order():
    for items in (["eggs=1", "sugar=0.2"], ["sugar=0.2", "eggs=1"]):
        sweet = {"sweet": Cake(eggs=5, sugar=0.95)}
        assert get_recipe("sweet", items, sweet).eggs == 1
    both = get_recipe("sponge", ["toppings.nuts=2", "toppings.cream=1"], CAKES)
    assert both.toppings == {"nuts": 2, "cream": 1}


def test_options_of_the_graphs_are_checked_with_the_recipe():
    assert get_recipe("sponge", ["threshold=0.6", "edge_scale=2"], CAKES).edge_scale == 2
    with pytest.raises(ValueError, match=r'`wiring` .*"dynamic".* Received: "dynamo"$'):
        get_recipe("sponge", ["wiring=dynamo"], CAKES)


def test_json_holds_the_format_and_every_key():
    content = json.loads(CAKES["torte"].to_json())
    assert (content["format"], content["eggs"], content["layers"]) == (7, 8, [1, 2])
    assert set(content) == {"format", *(field.name for field in dataclasses.fields(Cake))}
