"""Read YAML as people write it, and no more of it than people write."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from trimix_lm_eval.utils.errors import TrimixError

#: Values in all, lists in lists, bits of a number.
_MOST_VALUES, _MOST_DEPTH, _MOST_BITS = 10**6, 50, 10_000


def read_yaml(path: Path, hint: str = "correct the file or its path") -> dict[str, Any]:
    """Read a YAML file that holds a mapping, or nothing.

    ``1:1`` is read as it is written, though YAML 1.1 takes it for a time of day; ``!function f``
    is the text ``f``. A key that a mapping has twice is an error, as YAML has it: PyYAML takes the
    last without a word.

    Raises:
        TrimixError: It cannot be read, is not YAML, or holds something else; with the hint.
    """
    import yaml

    try:
        with path.open(encoding="utf-8") as file:  # whose name PyYAML's errors tell
            content = yaml.load(file, _loader())
    except OSError as error:
        raise TrimixError(f"{path} cannot be read: {error.strerror or error}.", hint) from error
    # ValueError of dates that there are not, RecursionError of thousands of brackets.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise TrimixError(f"{path} is not YAML: {error}", hint) from error
    if not _is_of_use(content):
        raise TrimixError(
            f"{path} holds a number of thousands of digits, or lists in lists without end.", hint
        )
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise TrimixError(f"{path} is no mapping.", hint)
    return content


def _is_of_use(content: Any) -> bool:
    """Whether YAML is no larger than what people write, its aliases written out.

    A number that Python refuses to print cannot even be named in a message.
    """
    left = [(content, 0)]
    for _ in range(_MOST_VALUES):
        if not left:
            return True
        value, depth = left.pop()
        if depth > _MOST_DEPTH or (isinstance(value, int) and value.bit_length() > _MOST_BITS):
            return False
        inside = value if isinstance(value, list) else ()
        inside = [*value, *value.values()] if isinstance(value, dict) else inside
        left += ((one, depth + 1) for one in inside)
    return False


@cache
def _loader() -> Any:
    """A class of our own: what is added to it does not leak into everybody's SafeLoader."""
    import yaml

    class _Loader(yaml.SafeLoader):
        """Reads what `read_yaml` reads."""

        def construct_yaml_int(self, node: yaml.ScalarNode) -> Any:
            """A number, or what has a colon in it."""
            text = self.construct_scalar(node)
            return text if ":" in text else super().construct_yaml_int(node)

        def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
            """A mapping as it is written, each key once."""
            node = super().compose_mapping_node(anchor)
            seen = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if (key.tag, key.value) in seen:
                    told = f"found the key {key.value!r:.80} twice"
                    raise yaml.MarkedYAMLError(problem=told, problem_mark=key.start_mark)
                seen.add((key.tag, key.value))
            return node

    _Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
    _Loader.add_multi_constructor("!", lambda loader, _, node: str(node.value))
    return _Loader
