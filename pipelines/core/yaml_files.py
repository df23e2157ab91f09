"""Reads settings strictly: a YAML loader that rejects duplicate keys, and pydantic's errors on one line."""

import yaml
from pydantic import ValidationError


class UniqueKeys(yaml.SafeLoader):
    """A YAML loader that rejects duplicate keys, of which the last would silently win."""

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


def validation_problems(error: ValidationError, root: str) -> str:
    """Returns all problems as `key: problem; …`. root: what to call the value that holds the keys."""
    return "; ".join(
        f"{'.'.join(map(str, each['loc'])) or root}: {each['msg'].removeprefix('Value error, ')}"
        for each in error.errors(include_url=False)
    )
