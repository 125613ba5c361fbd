"""Settings in layers: file, then environment, then command line; each keeps where it came from.

Knows sections and keys, which it reads off dataclasses; not what they mean. A section whose
dataclass has a field marked ``rest`` takes further keys of any name, which become that mapping.
"""

from __future__ import annotations

import tomllib
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from edgeweave.core.errors import ConfigError
from edgeweave.core.units import parse_bytes
from edgeweave.core.words import suggest
from edgeweave.train.jobs.references import absolute_reference, check_reference
from edgeweave.train.jobs.toml import toml_value

__all__ = ["MemoryBytes", "Reference", "Setting", "Settings", "key", "rest"]


class Reference(str):
    """A function named in text; its file, if it names one, has an absolute path."""

    __slots__ = ()


class MemoryBytes(int):
    """A size of memory in bytes; in a job file also text such as ``"512MiB"``."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Setting:
    """A value, where it was found, and the folder that its relative paths start from."""

    value: object
    origin: str
    base: Path


def key(rule: str, example: object) -> dict[str, object]:
    """The metadata of a field that one key sets; ``rule`` completes "batch_size is ..."."""
    return {"rule": rule, "example": example}


def rest(rule: str, name: str, example: object) -> dict[str, object]:
    """The metadata of the field that takes the keys of a section that no other field has."""
    return {"rule": rule, "example": example, "rest": name}


class Settings:
    """What has been set so far, by section and key; a later ``put`` wins."""

    def __init__(self, sections: Mapping[str, type]) -> None:
        self._sections = sections
        self._hints = {n: get_type_hints(s, include_extras=True) for n, s in sections.items()}
        self._found: dict[str, dict[str, Setting]] = {}

    def __contains__(self, section: str) -> bool:
        return section in self._found

    def put_document(self, document: Mapping[str, object], origin: str, base: Path) -> None:
        """Take over a parsed job file."""
        for section, table in document.items():
            self._check_section(section, origin)
            if not isinstance(table, dict):
                raise ConfigError(
                    f"{origin}: {section} is a section (got {table!r}). Write [{section}] above "
                    "its keys."
                )
            self._found.setdefault(section, {})
            for name, value in table.items():
                self._put(section, name, Setting(value, origin, base))

    def put_text(self, dotted: str, text: str, origin: str, base: Path) -> None:
        """Take over one value written as text: ``train.batch_size``, ``model.args.width``."""
        section, _, path = dotted.partition(".")
        self._check_section(section, origin)
        name, _, inner = path.partition(".")
        if not inner:
            self._put(section, name, Setting(self._parse(section, name, text), origin, base))
            return
        held = self._found.get(section, {}).get(name)
        table = held.value if held is not None else {}
        if not isinstance(table, dict) or not self._is_table(section, name):
            raise ConfigError(f"{origin}: {section}.{name} has no keys of its own (got {dotted}).")
        self._put(section, name, Setting({**table, inner: _guess(text)}, origin, base))

    def put_environment(self, environment: Mapping[str, str], prefix: str, base: Path) -> None:
        """Take over every variable named ``<prefix><SECTION>_<KEY>``."""
        for variable, text in sorted(environment.items()):
            for section in self._sections:
                start = f"{prefix}{section.upper()}_"
                if variable.startswith(start):
                    dotted = f"{section}.{self._key_of(section, variable[len(start) :].lower())}"
                    self.put_text(dotted, text, f"environment variable {variable}", base)

    def build(self, section: str, origin: str) -> Any:
        """The section's dataclass, every value checked."""
        cls, found = self._sections[section], self._found.get(section, {})
        values = {
            spec.name: self._convert(section, spec, found[spec.name])
            for spec in self._keys(section)
            if spec.name in found
        }
        for spec in self._keys(section):
            if spec.name not in values and _has_no_default(spec):
                raise ConfigError(
                    f"{origin}: {section}.{spec.name} is needed ({spec.metadata['rule']}; none "
                    f"given). {_example(section, spec)}"
                )
        taking_rest = self._rest(section)
        if taking_rest is not None:
            others = {name: s for name, s in found.items() if name not in values}
            values[taking_rest.name] = self._convert_rest(section, taking_rest, others)
        return cls(**values)

    def origin(self, section: str, name: str) -> str:
        """Where a value that was set came from."""
        return self._found[section][name].origin

    def _check_section(self, section: str, origin: str) -> None:
        if section not in self._sections:
            raise ConfigError(
                f"{origin}: a job has the sections {', '.join(self._sections)} (got {section!r}). "
                f"{suggest(section, self._sections)}"
            )

    def _put(self, section: str, name: str, setting: Setting) -> None:
        known = [spec.name for spec in self._keys(section)]
        if name not in known and self._rest(section) is None:
            raise ConfigError(
                f"{setting.origin}: {section}.{name} is not a key of a job. {suggest(name, known)}"
            )
        self._found.setdefault(section, {})[name] = setting

    def _keys(self, section: str) -> list[Field[Any]]:
        return [f for f in fields(self._sections[section]) if not f.metadata.get("rest")]

    def _rest(self, section: str) -> Field[Any] | None:
        specs = fields(self._sections[section])
        return next((spec for spec in specs if spec.metadata.get("rest")), None)

    def _is_table(self, section: str, name: str) -> bool:
        return get_origin(self._hints[section].get(name)) is dict

    def _key_of(self, section: str, lowered: str) -> str:
        """The key that the end of a variable's name means; case is lost there, so look for it."""
        names = [spec.name for spec in self._keys(section)] + list(self._found.get(section, {}))
        for name in names:
            if lowered == name.lower():
                return name
            if self._is_table(section, name) and lowered.startswith(f"{name}_"):
                return f"{name}.{lowered[len(name) + 1 :]}"
        return lowered

    def _parse(self, section: str, name: str, text: str) -> object:
        hint = self._hints[section].get(name)
        kinds = _alternatives(hint)
        if type(None) in kinds and text.lower() == "none":
            return None
        if hint == tuple[str, ...] and not text.startswith("["):
            return [part.strip() for part in text.split(",") if part.strip()]
        kinds = tuple(kind for kind in kinds if kind is not type(None))
        is_text = all(k in (str, Path, Reference) or get_origin(k) is Literal for k in kinds)
        return text if is_text else _guess(text)

    def _convert(self, section: str, spec: Field[Any], setting: Setting) -> object:
        hint = self._hints[section][spec.name]
        return _converted(f"{section}.{spec.name}", hint, spec, setting)

    def _convert_rest(
        self, section: str, spec: Field[Any], found: Mapping[str, Setting]
    ) -> dict[str, object]:
        hint = get_args(self._hints[section][spec.name])[1]
        return {n: _converted(f"{section}.{n}", hint, spec, s) for n, s in found.items()}


def _converted(dotted: str, hint: Any, spec: Field[Any], setting: Setting) -> object:
    try:
        return msgspec.convert(
            setting.value, hint, dec_hook=lambda kind, value: _decode(kind, value, setting.base)
        )
    except (msgspec.ValidationError, ConfigError, OverflowError, RuntimeError) as error:
        why = str(error).replace("`", "").removesuffix(".")
        raise ConfigError(
            f"{setting.origin}: {dotted} is {spec.metadata['rule']} (got "
            f"{_shortened(setting.value)}: {why}). {_example(dotted.partition('.')[0], spec)}"
        ) from error


def _decode(kind: type, value: object, base: Path) -> object:
    if kind is MemoryBytes:
        return _memory(value)
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("expected text")
    if kind is Reference:
        check_reference(value)
        return Reference(absolute_reference(value, base=base))
    return base.absolute() / Path(value).expanduser()


def _memory(value: object) -> MemoryBytes:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("expected a size such as 512MiB")
    n_bytes = value if isinstance(value, int) else parse_bytes(value)
    if not 0 < n_bytes < 2**63:
        raise ValueError("expected a size above 0 and below 8 EiB")
    return MemoryBytes(n_bytes)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    origin = get_origin(hint)
    kinds = get_args(hint) if origin is Union or origin is types.UnionType else (hint,)
    return tuple(get_args(kind)[0] if get_origin(kind) is Annotated else kind for kind in kinds)


def _guess(text: str) -> object:
    """The value TOML reads in a text, or the text: ``0.1``, ``[1, 2]``, ``true``, ``min``."""
    try:
        document = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return document["value"] if len(document) == 1 else text


def _has_no_default(spec: Field[Any]) -> bool:
    return spec.default is MISSING and spec.default_factory is MISSING


def _example(section: str, spec: Field[Any]) -> str:
    name = spec.metadata.get("rest", spec.name)
    return f"Write for example {name} = {toml_value(spec.metadata['example'])} in [{section}]."


def _shortened(value: object) -> str:
    try:
        shown = repr(value)
    except ValueError:  # an integer of more digits than Python converts
        shown = f"a very large {type(value).__name__}"
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
