"""Arguments, results and errors to JSON and back, through Pydantic by annotation. Never pickle."""

import inspect
import json
import math
import sys
import traceback
import typing
from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from eventflow.errors import CodecError, UsageError, WorkflowError, first_line

_EMPTY = inspect.Parameter.empty
_TRACEBACK = 16_000
_DEPTH = 200
_SCALARS: tuple[Any, ...] = (int, str, bool, float)


class Codec:
    """JSON for the values of one annotation; without one, for plain JSON values only."""

    def __init__(self, annotation: Any) -> None:
        self._annotation = annotation
        if annotation is _EMPTY or annotation is Any:
            self.encode: Callable[[Any], str] = _encode_plain
            self.decode: Callable[[str], Any] = json.loads
            return
        try:
            adapter: TypeAdapter[Any] = TypeAdapter(annotation)
        except Exception as error:
            raise UsageError(f"{annotation!r} cannot be stored as JSON: {first_line(error)}") from None
        self._to_json = adapter.serializer.to_json
        self._validate = adapter.validator.validate_json
        self._exact = annotation if isinstance(annotation, type) and _has_fields(annotation) else None
        self._scalar = annotation if annotation in _SCALARS else None
        self.encode = self._encode
        self.decode = self._decode

    def _encode(self, value: Any) -> str:
        if self._exact is not None and type(value) is not self._exact and isinstance(value, self._exact):
            raise CodecError(
                f"a {type(value).__qualname__} would lose fields as {self._exact.__qualname__}; annotate what is returned"
            )
        try:
            if type(value) is self._scalar:  # nothing to warn of, and Pydantic is ten times as quick when not asked to
                return self._to_json(value).decode()
            return self._to_json(value, warnings="error").decode()
        except (PydanticSerializationError, ValueError) as error:
            raise CodecError(f"{type(value).__qualname__} does not fit {self._annotation!r}: {error}") from None

    def _decode(self, text: str) -> Any:
        try:
            return self._validate(text)
        except ValidationError as error:
            raise CodecError(f"the record does not fit {self._annotation!r}: {error}") from None


def _has_fields(kind: type[Any]) -> bool:
    return issubclass(kind, BaseModel) or hasattr(kind, "__dataclass_fields__")


@lru_cache(maxsize=4096)
def _cached(annotation: Any) -> Codec:
    return Codec(annotation)


def codec_for(annotation: Any) -> Codec:
    """The codec of an annotation, made once.

    Raises:
        UsageError: the annotation cannot be stored as JSON.

    """
    try:
        return _cached(annotation)
    except TypeError:
        return Codec(annotation)


def _encode_plain(value: Any) -> str:
    if value is None:
        return "null"
    _check_plain(value, 0)
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        text.encode()
    except (TypeError, ValueError) as error:
        raise CodecError(f"not plain JSON: {error}") from None
    return text


def _check_plain(value: Any, depth: int) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise CodecError(f"JSON has no {value}")
    if depth > _DEPTH:
        raise CodecError("nested too deeply for JSON")
    if value is None or isinstance(value, bool | int | float | str):
        return
    if isinstance(value, list):
        for item in cast("list[Any]", value):
            _check_plain(item, depth + 1)
    elif isinstance(value, dict):
        for key, item in cast("dict[Any, Any]", value).items():
            if not isinstance(key, str):
                raise CodecError(f"JSON objects have string keys, not {key!r}")
            _check_plain(item, depth + 1)
    else:
        raise CodecError(f"a {type(value).__qualname__} without annotation is not plain JSON; annotate it")


class Arguments:
    """A function's arguments as one JSON text, each by its parameter's annotation."""

    def __init__(self, function: Callable[..., Any]) -> None:
        plain = inspect.unwrap(getattr(function, "__func__", function))
        self._name = plain.__qualname__
        self._signature = inspect.signature(plain)
        if inspect.ismethod(function):
            _, *others = self._signature.parameters.values()
            self._signature = self._signature.replace(parameters=others)
        try:
            resolved = typing.get_type_hints(plain, include_extras=True)
        except Exception as error:
            raise UsageError(f"the annotations of {self._name} cannot be resolved: {error}") from None
        self._codecs = {n: codec_for(resolved.get(n, _EMPTY)) for n in self._signature.parameters}
        self._kinds = {n: p.kind for n, p in self._signature.parameters.items()}
        # How many arguments fit where all are given by position, and whose they are: to bind them is a slow way to learn it.
        self._simple = {count: self._positional(count) for count in _counts(self._signature)}

    def encode(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """The arguments as JSON: {"args": [...], "kwargs": {...}}.

        Raises:
            UsageError: they do not fit the signature.
            CodecError: one does not fit its annotation.

        """
        names = None if kwargs else self._simple.get(len(args))
        if names is None:
            try:
                self._signature.bind(*args, **kwargs)
            except TypeError as error:
                raise UsageError(f"{self._name}: {error}") from None
            names = self._positional(len(args))
        encoded = [self._one(n, v) for n, v in zip(names, args, strict=True)]
        keyed = [f"{json.dumps(n)}:{self._one(self._keyword(n), v)}" for n, v in kwargs.items()]
        return f'{{"args":[{",".join(encoded)}],"kwargs":{{{",".join(keyed)}}}}}'

    def decode(self, text: str) -> tuple[list[Any], dict[str, Any]]:
        """The inverse of `encode`.

        Raises:
            CodecError: the record does not fit the function as it is now.

        """
        try:
            data = json.loads(text)
            args, kwargs = data["args"], data["kwargs"]
            simple = None if kwargs else self._simple.get(len(args))
            names = self._positional(len(args)) if simple is None else simple
            positional = [self._codecs[n].decode(json.dumps(v)) for n, v in zip(names, args, strict=True)]
            keyed = {n: self._codecs[self._keyword(n)].decode(json.dumps(v)) for n, v in kwargs.items()}
            if simple is None:
                self._signature.bind(*positional, **keyed)
        except CodecError as error:
            raise CodecError(f"the arguments of {self._name}: {error}") from None
        except (ValueError, KeyError, TypeError, UsageError) as error:
            raise CodecError(f"the arguments of {self._name} do not fit it any more: {error}") from None
        return positional, keyed

    def _one(self, name: str, value: Any) -> str:
        try:
            return self._codecs[name].encode(value)
        except CodecError as error:
            raise CodecError(f"{self._name}, argument {name!r}: {error}") from None

    def _positional(self, count: int) -> list[str]:
        names: list[str] = []
        for name, kind in self._kinds.items():
            if kind in {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}:
                names.append(name)
            elif kind is inspect.Parameter.VAR_POSITIONAL:
                names += [name] * max(0, count - len(names))
        return names[:count]

    def _keyword(self, name: str) -> str:
        if name in self._kinds and self._kinds[name] is not inspect.Parameter.VAR_KEYWORD:
            return name
        for known, kind in self._kinds.items():
            if kind is inspect.Parameter.VAR_KEYWORD:
                return known
        raise UsageError(f"{self._name} has no parameter {name!r}")


def _counts(signature: inspect.Signature) -> range:
    """How many arguments by position alone fit a signature that takes no other number of them."""
    parameters = signature.parameters.values()
    free = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    needed = [p for p in parameters if p.default is inspect.Parameter.empty and p.kind in free]
    if any(p.kind not in free for p in parameters):
        return range(0)
    return range(len(needed), len(parameters) + 1)


# ---- errors ------------------------------------------------------------------------------------


def encode_error(error: BaseException) -> str:
    """An exception as JSON, without pickle; never raises."""
    kind = type(error)
    record = {
        "type": f"{kind.__module__}.{kind.__qualname__}",
        "message": _text(error),
        "arguments": _plain_or_none(list(error.args)),
        "attributes": _plain_or_none({n: v for n, v in vars(error).items() if n != "__notes__"}),
        "notes": [_clean(str(n)) for n in getattr(error, "__notes__", [])],
        "traceback": _clean("".join(traceback.format_exception(error))[-_TRACEBACK:]),
    }
    return json.dumps(record)


def _text(error: BaseException) -> str:
    try:
        return _clean(str(error))
    except Exception:
        return f"<{type(error).__qualname__} without text>"


def error_line(error: BaseException) -> str:
    """The first line of what an exception says; never raises."""
    return (_text(error).splitlines() or [type(error).__name__])[0][:300]


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode().replace("\0", "\\0")


def _plain_or_none(value: Any) -> Any:
    try:
        return json.loads(_encode_plain(value))
    except (CodecError, RecursionError):
        return None


def recorded_line(text: str) -> str:
    """A recorded exception as "Type: message", named as a traceback names it."""
    record = json.loads(text)
    name = record["type"].removeprefix("builtins.").removeprefix("__main__.")
    return f"{name}: {record['message']}" if record["message"] else name


def decode_error(text: str) -> Exception:
    """The recorded exception: its own class where that is imported already, else a `WorkflowError`."""
    record = json.loads(text)
    kind = _imported(record["type"])
    arguments = record.get("arguments")
    if kind is None or arguments is None:
        return WorkflowError(record["type"], record["message"], record.get("traceback", ""))
    error = kind.__new__(kind, *arguments)
    error.args = tuple(arguments)
    attributes: dict[str, Any] = record.get("attributes") or {}
    for name, value in attributes.items():
        setattr(error, name, value)
    for note in record.get("notes", []):
        error.add_note(note)
    return error


def _imported(name: str) -> type[Exception] | None:
    """The exception class of this name, if a module that is imported already has it."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        found: Any = sys.modules.get(".".join(parts[:cut]))
        if found is None:
            continue
        for part in parts[cut:]:
            found = getattr(found, part, None)
        return found if isinstance(found, type) and issubclass(found, Exception) else None
    return None
