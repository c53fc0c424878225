"""Read YAML with plain values alone; a key that is there twice is an error, and ``1e-4`` is a number."""

from __future__ import annotations

import re
from typing import Any

import yaml


class _UniqueKeys:
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise ValueError(f"line {key.start_mark.line + 1}: the key {key.value!r} is there twice")
                seen.add((key.tag, key.value))
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)  # type: ignore[misc]
        return mapping


class _Loader(_UniqueKeys, yaml.SafeLoader):
    pass


class _TextLoader(_UniqueKeys, yaml.BaseLoader):
    pass


# YAML 1.1, which PyYAML reads, wants a point in a number with an exponent; people do not.
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))


def parse_yaml(text: str, *, as_text: bool = False) -> Any:
    """The plain values that a text stands for.

    Args:
        text: of the file.
        as_text: leave every value the text that it is: a class may be called yes or 1e3.

    Raises:
        ValueError: if it is not YAML, or a mapping has a key twice.
    """
    try:
        return (_TextLoader if as_text else _Loader)(text).get_single_data()
    # Values that do not go with their tag, such as !!int '', make PyYAML stumble in many ways.
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
