"""Registries: what they hold, what they refuse."""

from __future__ import annotations

import pytest

import amopo
from amopo.registry import Registry


@pytest.fixture
def colours() -> Registry[str]:
    registry: Registry[str] = Registry("colour")
    registry.register("red", "#f00")
    registry.register("blue", "#00f")
    return registry


def test_names_come_in_the_order_of_registration(colours):
    assert colours.list() == ["red", "blue"]
    assert colours.get("blue") == "#00f"
    assert "red" in colours and "green" not in colours


def test_an_unknown_name_raises_and_lists_the_known_ones(colours):
    with pytest.raises(ValueError, match=r"unknown colour 'green'; known: red, blue"):
        colours.get("green")
    with pytest.raises(ValueError, match="known: none yet"):
        Registry("taste").get("sweet")
    with pytest.raises(ValueError, match=r"unknown colour \['red'\]"):
        colours.get(["red"])


def test_a_taken_name_needs_replace(colours):
    with pytest.raises(ValueError, match="colour 'red' is already registered; pass replace=True"):
        colours.register("red", "#e00")
    assert colours.get("red") == "#f00"
    colours.register("red", "#e00", replace=True)
    assert colours.get("red") == "#e00"


def test_register_without_an_entry_is_a_decorator():
    functions: Registry = Registry("function")

    @functions.register("double")
    def double(x):
        return 2 * x

    assert functions.get("double") is double


@pytest.mark.parametrize("name", ["", None, 3])
def test_a_name_is_non_empty_text(colours, name):
    with pytest.raises(ValueError, match="non-empty string as its name"):
        colours.register(name, "#000")


def test_the_public_templates_are_such_a_registry():
    assert {"rubric", "rubric_suffix", "brief", "plain"} <= set(amopo.templates.list())
    assert amopo.templates.get("rubric").name == "rubric"
    with pytest.raises(ValueError, match="unknown template 'rubrik'; known: .*rubric"):
        amopo.templates.get("rubrik")
