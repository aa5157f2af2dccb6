"""Typed access to the hyperparameters of a GGUF file: every value is checked, and a key nobody read is noticed."""

from math import isfinite
from typing import Any, NoReturn

import numpy as np

from hetero.errors import FileError, UnsupportedError
from hetero.gguf import GGUFFile

REMEDY = "convert the original model again with a current llama.cpp, or download another file of it"


class Metadata:
    """The keys that start with `architecture.`; they are named without it here."""

    def __init__(self, file: GGUFFile, architecture: str):
        self.values, self.source, self.prefix = file.metadata, file.paths[0].name, f"{architecture}."
        self.read: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return self.prefix + key in self.values

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """A per-layer array counts as its value when all layers agree."""
        value = self._get(key, default)
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()
        if type(value) is not int or not low <= value <= high:
            self.refuse(key, value, f"an integer from {low:,} to {high:,}")
        return value

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        value = self._get(key, default)
        if type(value) not in (int, float) or not isfinite(value) or not low <= value <= high:
            self.refuse(key, value, f"a number from {low:g} to {high:g}")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        value = self._get(key, default)
        if type(value) is not bool:
            self.refuse(key, value, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self._get(key, default)
        if type(value) is not str:
            self.refuse(key, value, "a string")
        return value

    def require(self, key: str, implemented: tuple[Any, ...], missing: Any = None) -> None:
        """Refuse by name a value that is not implemented. A missing key means `missing`, or else the first value."""
        value = self._get(key, implemented[0] if missing is None else missing)
        if isinstance(value, np.ndarray | list) or value not in implemented:
            raise UnsupportedError(
                f"{self.source}: {self.prefix}{key} is {value!r:.80}",
                f"implemented: {', '.join(map(str, implemented))}",
                "run this model with llama.cpp",
            )

    def ignore(self, *keys: str) -> None:
        self.read.update(self.prefix + key for key in keys)

    def refuse_unread(self) -> None:
        """A hyperparameter that the code does not know would be computed wrongly in silence."""
        for key in self.values:
            if key.startswith(self.prefix) and key not in self.read:
                raise UnsupportedError(
                    f"{self.source}: {key} is not implemented",
                    "only models of the DeepSeek-V2, V3 and R1 shape are run",
                    "run this model with llama.cpp",
                )

    def missing(self, key: str) -> NoReturn:
        raise FileError(f"{self.source}: the metadata key {self.prefix}{key} is missing", "", REMEDY)

    def refuse(self, key: str, value: Any, limit: str) -> NoReturn:
        raise FileError(f"{self.source}: {self.prefix}{key} is {value!r:.80}", limit, REMEDY)

    def _get(self, key: str, default: Any) -> Any:
        name = self.prefix + key
        self.read.add(name)
        value = self.values.get(name, default)
        if value is None:
            self.missing(key)
        return value
