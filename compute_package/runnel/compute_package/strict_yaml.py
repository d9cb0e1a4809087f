"""Manifests as YAML of plain values, read strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from runnel.common.errors import BadPackage

MAX_BYTES = 64 * 1024
"""Of a manifest."""


class _StrictLoader(yaml.SafeLoader):
    """Plain YAML values only: a key may appear once, and nothing is repeated by reference (such files can explode)."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "anchors and aliases are not accepted", None)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key should be a word", key_node.start_mark)
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} appears twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def load_yaml(path: Path) -> dict[Any, Any]:
    """Return the mapping in a file of at most 64 KiB.

    Raises:
        BadPackage: it is larger, not YAML, or no mapping.
    """
    with path.open("rb") as file:
        raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise BadPackage(f"{path.name} is larger than {MAX_BYTES // 1024} KiB.", file=path.name)
    try:
        document = yaml.load(raw, _StrictLoader)  # noqa: S506 (derived from SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise BadPackage(f"{path.name} can not be read as YAML: {reason[:300]}.", file=path.name) from error
    if not isinstance(document, dict):
        raise BadPackage(f"{path.name} should hold keys and values but is {kind_of(document)}.", file=path.name)
    return document


def kind_of(value: object) -> str:
    """Say what a YAML value is without printing it: it may be huge."""
    kinds = {dict: "a mapping", list: "a list", bool: "true or false", int: "a number", float: "a number", str: "text"}
    return "empty" if value is None else kinds.get(type(value), f"a {type(value).__name__}")
