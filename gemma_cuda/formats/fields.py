"""`Fields`: typed, bounded reads from an unchecked mapping. Every refusal is one ConfigError."""

import math
from collections.abc import Mapping, Sequence
from typing import NoReturn

from ..arguments import shown
from ..errors import ConfigError

MAX_SIZE = 1 << 24
"""Above any width, vocabulary or count of a model that could ever be loaded."""
MAX_INT32 = (1 << 31) - 1
MAX_LAYERS = 1024

_MISSING = object()


def shown_json(value: object) -> str:
    """A JSON value for a message: objects and lists by their size, all others as `arguments.shown` has them."""
    if isinstance(value, Mapping):
        return f"an object with {len(value)} keys"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"a list of {len(value)} values"
    return shown(value)


class Fields:
    """Values of one object of a configuration; `prefix` is its path within the file `source`.

    An absent key takes `default`; without a default it is an error. A null is an error unless the method says
    otherwise, as in HuggingFace's config classes.
    """

    def __init__(self, values: Mapping[str, object], *, source: str, prefix: str = "") -> None:
        self.values = values
        self.source = source
        self.prefix = prefix

    def fail(self, key: str, problem: str) -> NoReturn:
        raise ConfigError(f"{self.source}: {self.prefix}{key} {problem}")

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def is_null(self, key: str) -> bool:
        """Whether the key is absent or null."""
        return self.values.get(key) is None

    def _get(self, key: str, default: object) -> object:
        value = self.values.get(key, _MISSING)
        if value is not _MISSING:
            return value
        if default is _MISSING:
            self.fail(key, "is missing")
        return default

    def integer(self, key: str, default: object = _MISSING, *, minimum: int = 1, maximum: int = MAX_SIZE) -> int:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            self.fail(key, f"is {shown_json(value)}, expected an integer")
        if not minimum <= value <= maximum:
            self.fail(key, f"is {shown_json(value)}, expected {minimum} to {maximum}")
        return value

    def integers(self, key: str, *, minimum: int = 1, maximum: int = MAX_SIZE) -> list[int]:
        """The integers of the list under `key`."""
        items = {f"{key}[{index}]": item for index, item in enumerate(self.sequence(key))}
        fields = Fields(items, source=self.source, prefix=self.prefix)
        return [fields.integer(name, minimum=minimum, maximum=maximum) for name in items]

    def optional_integer(
        self, key: str, default: int | None, *, minimum: int = 1, maximum: int = MAX_SIZE
    ) -> int | None:
        """An integer or null."""
        if self._get(key, default) is None:
            return None
        return self.integer(key, default, minimum=minimum, maximum=maximum)

    def positive(self, key: str, default: object = _MISSING) -> float:
        """A finite number above 0, as float."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail(key, f"is {shown_json(value)}, expected a number")
        if isinstance(value, int) and value.bit_length() > 128:  # float() would overflow
            self.fail(key, f"is {shown_json(value)}, expected a finite number above 0")
        number = float(value)
        if not (math.isfinite(number) and number > 0):
            self.fail(key, f"is {number!r}, expected a finite number above 0")
        return number

    def optional_positive(self, key: str, default: float | None) -> float | None:
        """A finite number above 0, or null."""
        return None if self._get(key, default) is None else self.positive(key, default)

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            self.fail(key, f"is {shown_json(value)}, expected true or false")
        return value

    def optional_flag(self, key: str) -> bool:
        """True or false; false if absent or null."""
        return False if self.is_null(key) else self.flag(key, False)

    def optional_text(self, key: str) -> str | None:
        """A string; None if absent or null."""
        return None if self.is_null(key) else self.text(key)

    def text(self, key: str, default: object = _MISSING) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            self.fail(key, f"is {shown_json(value)}, expected a string")
        return value

    def section(self, key: str) -> "Fields":
        """The object under `key`."""
        value = self._get(key, _MISSING)
        if not isinstance(value, Mapping):
            self.fail(key, f"is {shown_json(value)}, expected an object")
        return Fields(value, source=self.source, prefix=f"{self.prefix}{key}.")

    def optional_section(self, key: str) -> "Fields":
        """The object under `key`; an empty one if absent or null."""
        if self.is_null(key):
            return Fields({}, source=self.source, prefix=f"{self.prefix}{key}.")
        return self.section(key)

    def sequence(self, key: str) -> Sequence[object]:
        value = self._get(key, _MISSING)
        if isinstance(value, str | bytes) or not isinstance(value, Sequence):
            self.fail(key, f"is {shown_json(value)}, expected a list")
        return value
