"""YAML that users declare things in: read, filled in, made into objects."""

from __future__ import annotations

from typing import Any

import pytest
from jsonargparse import ArgumentParser

from hpa_lightning.declarations import check_classes, fill, instantiate, load_yaml

BOMB = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 8)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "study is not valid YAML: "),
        ("a: &a [*a]", "an alias is inside its own anchor"),
        (BOMB, "with its aliases filled in it holds more than 1000000 values"),
        ("[" * 5000, "study is not YAML"),
        ("a: 2020-13-45", "study is not valid YAML: "),
        ("{[1]: 2}", "study is not valid YAML: "),
        ("methods:\n  hpa: {title: a}\n  'hpa': {title: b}", "the key 'hpa' occurs twice in one mapping"),
    ],
    ids=["broken", "itself", "bomb", "deep", "date", "key", "twice"],
)
def test_what_is_no_yaml_is_named_and_takes_no_memory(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_yaml(text, "study")
    assert len(str(caught.value)) < 600


def test_an_alias_stands_for_what_it_names() -> None:
    assert load_yaml("a: &a [1]\nb: *a", "study") == {"a": [1], "b": [1]}
    assert load_yaml("a: &a {k: 1, l: 1}\nb: {<<: *a, k: 2}", "study")["b"] == {"k": 2, "l": 1}


def test_a_placeholder_that_is_all_of_a_text_keeps_its_type() -> None:
    values = {"p": 5, "on": None, "name": "hpa"}
    assert fill({"a": ["${p}", "${on}", "${name} at ${p}"], "b": 1}, values) == {"a": [5, None, "hpa at 5"], "b": 1}
    with pytest.raises(ValueError, match=r"nothing fills \$\{q\}; the names known here are \['name', 'on', 'p'\]"):
        fill("x ${q}", values)


@pytest.mark.parametrize(
    "node",
    [
        {"model": {"class_path": "evil.Model"}},
        {"trainer": {"callbacks": ["hpa_lightning.callbacks.SafetyGate", "evil.Callback"]}},
        {"trainer": {"logger": "evil.Logger"}},
        [{"deep": [{"class_path": "evil.Deep"}]}],
    ],
)
def test_classes_of_other_packages_are_refused_before_they_are_imported(node: Any) -> None:
    with pytest.raises(ValueError, match=r"names the class 'evil.*--imports evil"):
        check_classes(node, ["hpa_lightning", "torch"], "the study")
    check_classes(node, ["hpa_lightning", "evil"], "the study")
    check_classes({"callbacks": ["SafetyGate"], "path": "evil.txt"}, ["hpa_lightning"], "the study")


def test_objects_are_made_and_what_the_parser_says_is_named() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--size", type=int)
    assert instantiate(parser, {"size": 3}, "a.yaml").size == 3
    with pytest.raises(ValueError, match=r"^a\.yaml: .*size"):
        instantiate(parser, {"size": "many"}, "a.yaml")
