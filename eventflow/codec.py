"""Arguments, results and errors to JSON and back, through Pydantic by annotation. Never pickle.

What is made here is plain text, and at most `limit.size` bytes of it. That it may be stored encrypted, `payloads` knows.
"""

import inspect
import json
import math
import sys
import traceback
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError, PydanticSerializationError

from eventflow.errors import CodecError, UnreadableError, UsageError, WorkflowError, first_line
from eventflow.payloads import Unread

_EMPTY = inspect.Parameter.empty
_TRACEBACK = 16_000
_SHARE = 16  # of the limit, that each long text of an error's record may have
_DEPTH = 200
_NO_TEXT = "; a model with bytes says `model_config = ConfigDict(ser_json_bytes='base64', val_json_bytes='base64')`"
_BYTES = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
_SCALARS: tuple[Any, ...] = (int, str, bool, float)


class _Limit:
    """How large one encoded value may be in this process; whoever reads the settings sets it."""

    __slots__ = ("size",)

    def __init__(self) -> None:
        self.size = 8 * 1024 * 1024  # bytes

    def check(self, taken: int) -> None:
        """Refuse a value that takes so many bytes.

        Raises:
            CodecError: they are too many; says what to do.

        """
        if taken > self.size:
            raise CodecError(
                f"it takes {taken:,} bytes as JSON and may take {self.size:,} (EVENTFLOW_MAX_PAYLOAD): keep what is large "
                "elsewhere, and pass where it is"
            )


limit = _Limit()


class Codec:
    """JSON for the values of one annotation; without one, for plain JSON values only."""

    def __init__(self, annotation: Any) -> None:
        self._annotation = annotation
        self._what = ""
        self._plain = False
        if annotation is _EMPTY or annotation is Any:
            self._plain = True
            self._bind()
            return
        try:
            adapter = _adapter(annotation)
        except Exception as error:
            raise UsageError(f"{annotation!r} cannot be stored as JSON: {first_line(error)}") from None
        self._to_json = adapter.serializer.to_json
        self._validate = adapter.validator.validate_json
        self._exact = annotation if isinstance(annotation, type) and _has_fields(annotation) else None
        self._scalar = annotation if annotation in _SCALARS else None
        self._bind()

    def _bind(self) -> None:
        self.encode: Callable[[Any], str] = self._encode_plain if self._plain else self._encode
        self.decode: Callable[[str], Any] = self._decode_plain if self._plain else self._decode

    def named(self, what: str) -> "Codec":
        """The same codec, whose errors say what it is that cannot be encoded or decoded: "the result of 'charge'"."""
        named = Codec.__new__(Codec)
        named.__dict__.update(self.__dict__)
        named._what = f"{what}: "
        named._bind()
        return named

    def _encode(self, value: Any) -> str:
        if self._exact is not None and type(value) is not self._exact and isinstance(value, self._exact):
            raise CodecError(
                f"{self._what}a {type(value).__qualname__} would lose fields as {self._exact.__qualname__}; "
                "annotate what is returned"
            )
        try:
            # Of a scalar there is nothing to warn of, and Pydantic is ten times as quick when not asked to.
            data = self._to_json(value) if type(value) is self._scalar else self._to_json(value, warnings="error")
        except (PydanticSerializationError, ValueError) as error:
            hint = _NO_TEXT if "invalid utf-8" in str(error) else ""
            raise CodecError(
                f"{self._what}{type(value).__qualname__} does not fit {self._annotation!r}: {error}{hint}"
            ) from None
        if len(data) > limit.size:
            self._check_size(len(data))
        return data.decode()

    def _check_size(self, size: int) -> None:
        try:
            limit.check(size)
        except CodecError as error:
            raise CodecError(f"{self._what}{error}") from None

    def _decode(self, text: str) -> Any:
        try:
            return self._validate(text)
        except ValidationError as error:
            raise self._unfit(text, f"the record does not fit {self._annotation!r}: {error}") from None

    def _encode_plain(self, value: Any) -> str:
        if value is None:
            return "null"
        try:
            return _encode_plain(value)
        except CodecError as error:
            raise CodecError(f"{self._what}{error}") from None

    def _decode_plain(self, text: str) -> Any:
        try:
            return json.loads(text)
        except ValueError as error:
            raise self._unfit(text, f"the record is no JSON: {error}") from None

    def _unfit(self, text: str, complaint: str) -> CodecError:
        if type(text) is Unread:
            return UnreadableError(f"{self._what}{text.why}")
        return CodecError(f"{self._what}{complaint}")


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    """With bytes as base64, for not all bytes are text; a model, and whatever else has a configuration, says so itself."""
    try:
        return TypeAdapter(annotation, config=_BYTES)
    except PydanticUserError as error:
        if error.code != "type-adapter-config-unused":
            raise
    # By another name Pydantic lets a dataclass have ours, as it does where one stands in a list.
    renamed = cast("Callable[..., Any]", typing.NewType)("Stored", annotation)
    return TypeAdapter(renamed, config=_BYTES)


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
    _check_plain(value, 0)
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        size = len(text.encode())
    except (TypeError, ValueError) as error:
        raise CodecError(f"not plain JSON: {error}") from None
    limit.check(size)
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


def joined(args: Sequence[str], kwargs: Mapping[str, str], what: str) -> str:
    """Arguments that are encoded each, as one text.

    Raises:
        CodecError: together they are too large.

    """
    keyed = [f"{json.dumps(name)}:{text}" for name, text in kwargs.items()]
    text = f'{{"args":[{",".join(args)}],"kwargs":{{{",".join(keyed)}}}}}'
    if len(text) * 4 > limit.size:  # a character takes four bytes at most
        try:
            limit.check(len(text.encode()))
        except CodecError as error:
            raise CodecError(f"{what}: {error}") from None
    return text


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
        keyed = {n: self._one(self._keyword(n), v) for n, v in kwargs.items()}
        return joined(encoded, keyed, f"the arguments of {self._name}")

    def decode(self, text: str) -> tuple[list[Any], dict[str, Any]]:
        """The inverse of `encode`.

        Raises:
            CodecError: the record does not fit the function as it is now.
            UnreadableError: it could not be decoded from what is stored.

        """
        if type(text) is Unread:
            raise UnreadableError(f"the arguments of {self._name}: {text.why}")
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
    """An exception as JSON, without pickle; never raises. Of one that is too large, its class and the beginning of its text."""
    kind = type(error)
    message, trace = _text(error), _clean("".join(traceback.format_exception(error))[-_TRACEBACK:])
    record = {
        "type": f"{kind.__module__}.{kind.__qualname__}",
        "message": message,
        "arguments": _found(error),
        "attributes": {n: v for n, v in vars(error).items() if n != "__notes__" and _is_plain(v)},
        "notes": [_clean(str(n)) for n in getattr(error, "__notes__", [])],
        "traceback": trace,
    }
    text = json.dumps(record)
    if len(text) <= limit.size:
        return text
    share = limit.size // _SHARE
    short = f"{message[:share]}... (cut: the record took {len(text):,} bytes, EVENTFLOW_MAX_PAYLOAD is {limit.size:,})"
    gone: dict[str, Any] = {"arguments": None, "attributes": None, "notes": []}
    return json.dumps({**record, **gone, "message": short, "traceback": trace[-share:]})


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


def _is_plain(value: Any) -> bool:
    return value is None or _plain_or_none(value) is not None


def recorded_line(text: str) -> str:
    """A recorded exception as "Type: message", named as a traceback names it; what cannot be read, as why."""
    if type(text) is Unread:
        return f"UnreadableError: {text.why}"
    record = json.loads(text)
    name = record["type"].removeprefix("builtins.").removeprefix("__main__.")
    return f"{name}: {record['message']}" if record["message"] else name


def decode_error(text: str) -> Exception:
    """The recorded exception: its own class where that is imported already, else a `WorkflowError`.

    Raises:
        UnreadableError: it could not be decoded from what is stored.

    """
    if type(text) is Unread:
        raise UnreadableError(text.why)
    record = json.loads(text)
    kind = _imported(record["type"])
    arguments = record.get("arguments")
    error = None if kind is None or arguments is None else _rebuilt(kind, arguments, record.get("attributes") or {})
    if error is None:
        return WorkflowError(record["type"], record["message"], record.get("traceback", ""))
    for note in record.get("notes", []):
        error.add_note(note)
    return error


def _rebuilt(kind: type[Exception], arguments: Any, attributes: Mapping[str, Any]) -> Exception | None:
    """An exception without its constructor; None where the class does not let itself be made so."""
    try:
        if kind is ValidationError:
            return _validation_error(*arguments)
        error = kind.__new__(kind, *arguments)
        error.args = tuple(arguments)
        for name, value in attributes.items():
            setattr(error, name, value)
    except Exception:  # of the class's own `__new__` or properties: it may be any
        return None
    return error


def _found(error: BaseException) -> Any:
    """What is recorded of what an exception was made of: its arguments, or what Pydantic found wrong, which is not in them."""
    if not isinstance(error, ValidationError):
        return _plain_or_none(list(error.args))
    lines = [
        {"type": e["type"], "loc": [*e["loc"]], "msg": e["msg"], "input": e["input"] if _is_plain(e["input"]) else None}
        for e in error.errors(include_url=False, include_context=False)
    ]
    return _plain_or_none([error.title, lines])


def _validation_error(title: str, lines: list[Any]) -> ValidationError:
    """One of Pydantic's, of what it found wrong."""
    details = [
        InitErrorDetails(type=PydanticCustomError(e["type"], e["msg"]), loc=tuple(e["loc"]), input=e["input"]) for e in lines
    ]  # fmt: skip
    return ValidationError.from_exception_data(title, details)


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
