"""What the file and the environment say, one laid over the other, read into types."""

from __future__ import annotations

import contextlib
import copy
import difflib
import tomllib
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from .problems import Problem

_PREFIX = "PGSLUICE_"
_SECTIONS = {
    "server", "auth", "sigv4", "tokens", "iam", "cors", "issuers", "targets", "policy", "observe",
    "nodes", "log_level",
}  # fmt: skip


class Found:
    """What the file and the environment say, where each value came from, and what is wrong."""

    def __init__(self, file: Path | None, environ: Mapping[str, str]) -> None:
        self.file = file
        self.environ = environ
        self.problems: list[Problem] = []
        self.variables: dict[tuple[str, ...], str] = {}
        """Environment variables by the key that they set, in lower case."""
        self.in_file = self._read_file()
        self.values = _layers(self._read_environment(), self.in_file)
        for section in self.values.keys() - _SECTIONS:
            self.problem((section,), unknown(section, _SECTIONS))
            del self.values[section]

    def _read_file(self) -> dict[str, Any]:
        if self.file is None:
            return {}
        try:
            return tomllib.loads(self.file.read_text(encoding="utf-8"))
        except OSError as error:
            message = f"cannot be read: {(error.strerror or 'unknown reason').lower()}"
        except UnicodeDecodeError:
            message = "is not UTF-8"
        except ValueError as error:
            message = f"is not TOML: {error}"
        self.problems.append(Problem("configuration file", str(self.file), message))
        return {}

    def _read_environment(self) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, value in sorted(self.environ.items()):
            path = name.removeprefix(_PREFIX).split("__")
            if not name.startswith(_PREFIX) or (len(path) == 1 and path[0] != "LOG_LEVEL"):
                continue  # also the client's, such as PGSLUICE_URL
            level: dict[str, Any] = values
            there: Mapping[str, Any] = self.in_file
            for part in path[:-1]:
                part = _spelling(part, there)
                below = level.setdefault(part, {})
                if not isinstance(below, dict):
                    below = level[part] = {}
                level, next_there = below, there.get(part)
                there = next_there if isinstance(next_there, Mapping) else {}
            level[_spelling(path[-1], there)] = value
            self.variables[tuple(part.lower() for part in path)] = name
        if port := self.environ.get("PORT"):
            server = values.setdefault("server", {})
            server["port"] = port
            self.variables["server", "port"] = "PORT"
        return values

    def source(self, path: tuple[str, ...]) -> str:
        """Where the value at *path* came from, or should have."""
        lower = tuple(part.lower() for part in path)
        for length in range(len(lower), 0, -1):
            if lower[:length] in self.variables:
                return self.variables[lower[:length]]
        if self.file is not None and _is_in(self.in_file, path):
            return str(self.file)
        for variable, name in self.variables.items():
            if variable[: len(lower)] == lower:
                return name
        return "the environment" if self.file is None else str(self.file)

    def problem(self, path: tuple[str, ...], message: str) -> None:
        """Remember that the value at *path* cannot be used."""
        self.problems.append(Problem(".".join(path), self.source(path), message))

    def section(self, *path: str) -> dict[str, Any]:
        """A copy of the table at *path*; empty if there is none."""
        value: Any = self.values
        for length, part in enumerate(path, 1):
            value = value.get(part, {})
            if not isinstance(value, Mapping):
                self.problem(path[:length], "must be a table")
                return {}
        return dict(value)

    def read(self, kind: Any, value: Any, path: tuple[str, ...]) -> Any:
        """*value* as a *kind*; what is wrong in it is reported and left out.

        `None` if nothing is left that would do.
        """
        from pydantic import TypeAdapter, ValidationError

        _forbid_unknown(kind)
        adapter = TypeAdapter(kind)
        value = _split_lists(kind, value)
        try:
            return adapter.validate_python(value)
        except ValidationError as error:
            details = error.errors(include_url=False, include_input=False)
        value = copy.deepcopy(value)
        for detail in details:
            self.problem(path + _place(detail), self._explain(kind, detail, _place(detail)))
            _remove(value, detail["loc"])
        # Again without, so that the checks behind this one find their problems at once.
        with contextlib.suppress(ValidationError):
            return adapter.validate_python(value)
        return None

    def _explain(self, kind: Any, detail: Mapping[str, Any], where: tuple[str, ...]) -> str:
        match detail["type"]:
            case "missing" | "missing_argument" | "missing_keyword_only_argument":
                return "is required"
            case "unexpected_keyword_argument" | "extra_forbidden":
                return unknown(where[-1], _names_at(kind, where[:-1]))
            case "dataclass_type":
                return "must be a table"
        message = str(detail["msg"]).removeprefix("Input ").removeprefix("Value error, ")
        return message[:1].lower() + message[1:]

    def secret(self, values: dict[str, Any], name: str, path: tuple[str, ...]) -> str | None:
        """What *name* or `name_file` holds; both are taken out of *values*."""
        text, file = values.pop(name, None), values.pop(f"{name}_file", None)
        if text is not None and file is not None:
            self.problem((*path, name), f"give {name} or {name}_file, not both")
            return None
        if file is not None:
            key = (*path, f"{name}_file")
            try:
                text = Path(str(file)).read_text()
            except OSError as error:
                self.problem(key, f"cannot be read: {(error.strerror or 'unknown').lower()}")
                return None
            except UnicodeDecodeError:
                self.problem(key, "is not text; write the key in base64")
                return None
        elif text is not None and not isinstance(text, str):
            self.problem((*path, name), "must be a string")
            return None
        return None if text is None else text.strip()


def _layers(*layers: dict[str, Any]) -> dict[str, Any]:
    """Tables laid over each other, the first on top."""
    # Imported here: 120 ms and 26 MiB that only a start may cost.
    from pydantic_settings import (
        BaseSettings,
        InitSettingsSource,
        PydanticBaseSettingsSource,
        SettingsConfigDict,
    )

    class Layers(BaseSettings):
        model_config = SettingsConfigDict(extra="allow")

        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *_: object, **__: object
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return tuple(InitSettingsSource(settings_cls, layer) for layer in layers)

    return dict(Layers().model_extra or {})


def _is_in(table: Any, path: tuple[str, ...]) -> bool:
    for part in path:
        if isinstance(table, list) and part.isdigit() and int(part) < len(table):
            table = table[int(part)]
        elif isinstance(table, Mapping) and part in table:
            table = table[part]
        else:
            return False
    return True


def _place(detail: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(part) for part in detail["loc"])


def _remove(value: Any, path: Sequence[Any]) -> None:
    """Take what is at *path* out of *value*, or the smallest thing around it."""
    for part in path[:-1]:
        below = value.get(part) if isinstance(value, dict) else None
        if not isinstance(below, dict):
            path = [part]
            break
        value = below
    if isinstance(value, dict) and path:
        value.pop(path[-1], None)


def _spelling(part: str, there: Mapping[str, Any]) -> str:
    """How *part* of a variable's name is spelled in the file, or else would be."""
    for known in there:
        if known.lower() == part.lower():
            return known
    return part.upper() if part.upper().startswith("GWAK") else part.lower()


def unknown(name: str, known: Iterable[str]) -> str:
    """What to say of *name*, which is none of *known*."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"is not a setting; did you mean {close[0]}?" if close else "is not a setting"


def _dataclasses(kind: Any) -> Iterator[type]:
    """Every dataclass that the type *kind* is made of, outermost first."""
    if is_dataclass(kind) and isinstance(kind, type):
        yield kind
        for hint in typing.get_type_hints(kind).values():
            yield from _dataclasses(hint)
    for argument in typing.get_args(kind):
        yield from _dataclasses(argument)


def _forbid_unknown(kind: Any) -> None:
    """Make pydantic refuse names that the dataclasses in *kind* do not have."""
    for found in _dataclasses(kind):
        found.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]


def _names_at(kind: Any, where: tuple[str, ...]) -> list[str]:
    """Names that may stand at *where* inside a *kind*."""
    for part in where:
        if is_dataclass(kind) and isinstance(kind, type):
            kind = typing.get_type_hints(kind).get(part)
        else:
            kind = (typing.get_args(kind) or (None,))[-1]
    found = next(_dataclasses(kind), None)
    return [item.name for item in fields(found)] if found else []


def _split_lists(kind: Any, value: Any) -> Any:
    """*value* with `"a, b"` made a list wherever the dataclasses in *kind* want one."""
    if not isinstance(value, Mapping):
        return value
    if typing.get_origin(kind) is Mapping:
        inner = typing.get_args(kind)[1]
        return {name: _split_lists(inner, item) for name, item in value.items()}
    if not (is_dataclass(kind) and isinstance(kind, type)):
        return value
    hints = typing.get_type_hints(kind)
    split = dict(value)
    for name, item in value.items():
        hint = hints.get(name)
        if isinstance(item, str) and typing.get_origin(hint) is tuple:
            split[name] = [part.strip() for part in item.split(",") if part.strip()]
        else:
            split[name] = _split_lists(hint, item)
    return split
