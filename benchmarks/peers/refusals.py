"""What we refuse in tests of others, from refusals.toml: a test that fails so is no failure of ours."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Refusal:
    """suite, tests: patterns of fnmatch, tests for the id without its parameters. parameters: some values of each.

    says: part of the message. An entry for all tests ("*", no parameters) says by its message alone what it covers, and
    no test that passes is held against it.
    """

    suite: str
    reason: str
    says: str
    tests: str = "*"
    parameters: Mapping[str, list[Any]] = field(default_factory=dict)
    devices: tuple[str, ...] = ()

    @property
    def is_by_message(self) -> bool:
        return self.tests == "*" and not self.parameters

    def covers(self, suite: str, device: str, test: str, parameters: Mapping[str, Any]) -> bool:
        """Whether a test is one that the entry names."""
        return (
            not self.is_by_message
            and fnmatchcase(suite, self.suite)
            and (not self.devices or device in self.devices)
            and fnmatchcase(test.partition("[")[0], self.tests)
            and all(
                name in parameters and any(_same(parameters[name], value) for value in values)
                for name, values in self.parameters.items()
            )
        )

    def explains(self, suite: str, device: str, test: str, parameters: Mapping[str, Any], message: str) -> bool:
        """Whether a test that failed with this message did so for the entry's reason."""
        names_it = self.covers(suite, device, test, parameters)
        if self.is_by_message:
            names_it = fnmatchcase(suite, self.suite) and (not self.devices or device in self.devices)
        return names_it and self.says in message


def _same(given: Any, listed: Any) -> bool:
    return isinstance(given, bool) == isinstance(listed, bool) and bool(given == listed)


@dataclass(frozen=True)
class LeftOut:
    """Tests that are not run at all."""

    suite: str
    tests: str
    reason: str

    def covers(self, suite: str, test: str) -> bool:
        return fnmatchcase(suite, self.suite) and fnmatchcase(test.partition("[")[0], self.tests)


_LISTS = tomllib.loads(Path(__file__).with_name("refusals.toml").read_text())
REFUSALS = [Refusal(**{**entry, "devices": tuple(entry.get("devices", ()))}) for entry in _LISTS["refusal"]]
LEFT_OUT = [LeftOut(**entry) for entry in _LISTS["left_out"]]
