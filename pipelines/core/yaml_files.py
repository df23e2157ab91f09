"""Reads settings strictly: a YAML loader that rejects duplicate keys, and pydantic's errors on one line."""

import yaml
from pydantic import ValidationError

MAX_NODES = 100_000  # of a document with its aliases written out


class UniqueKeys(yaml.SafeLoader):
    """A YAML loader that rejects duplicate keys, of which the last would silently win, and aliases of aliases that make
    a few lines fill the memory."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _size(node, {}) > MAX_NODES:
            raise yaml.composer.ComposerError(
                None,
                None,
                f"with its aliases written out, the document has more than {MAX_NODES:,} values",
                node.start_mark,
            )
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    "in a mapping", node.start_mark, f"the key {key.value!r} appears twice", key.start_mark
                )
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _size(node: yaml.Node, sizes: dict[int, float]) -> float:
    """Returns the number of values in a node with its aliases written out, infinite if it contains itself."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in sizes:
        sizes[id(node)] = float("inf")  # until it is known
        inner = (part for item in node.value for part in (item if isinstance(item, tuple) else (item,)))
        sizes[id(node)] = 1 + sum(_size(part, sizes) for part in inner)
    return sizes[id(node)]


def validation_problems(error: ValidationError, root: str) -> str:
    """Returns all problems as `key: problem; …`. root: what to call the value that holds the keys."""
    return "; ".join(
        f"{'.'.join(map(str, each['loc'])) or root}: {each['msg'].removeprefix('Value error, ')}"
        for each in error.errors(include_url=False)
    )
