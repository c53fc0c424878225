"""Read YAML with plain values alone; a key that is there twice is an error, and ``1e-4`` is a number."""

from __future__ import annotations

import re
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise ValueError(f"line {key.start_mark.line + 1}: the key {key.value!r} is there twice")
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


# YAML 1.1, which PyYAML reads, wants a point in a number with an exponent; people do not.
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))


def parse_yaml(text: str) -> Any:
    """The plain values that a text stands for.

    Raises:
        ValueError: if it is not YAML, or a mapping has a key twice.
    """
    try:
        return _Loader(text).get_single_data()
    # Values that do not go with their tag, such as !!int '', make PyYAML stumble in many ways.
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
