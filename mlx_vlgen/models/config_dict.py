"""config.json and generation_config.json as code written for MLX and code written for transformers read them."""

from collections.abc import Mapping
from typing import Any


class Config(dict[str, Any]):
    """A dict whose keys are attributes too, those of the dicts inside it as well.

    Names of dict's methods (`items`, `update`, …) stay the methods. AttributeError for a key that is not there.
    """

    def __init__(self, values: Mapping[str, Any] | None = None):
        super().__init__({key: _nested(value) for key, value in (values or {}).items()})

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"the configuration has no {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = _nested(value)

    def __delattr__(self, name: str) -> None:
        del self[name]


def _nested(value: Any) -> Any:
    if isinstance(value, list):
        return [_nested(one) for one in value]
    return Config(value) if isinstance(value, dict) and not isinstance(value, Config) else value
