"""Walks a body through Microsoft's own types (azure-mgmt-compute): a name that they do not have, a type or
a value of an enumeration that they do not take is a violation. Their client itself keeps what it does not
know, so it would not tell."""

import enum
import typing

from azure.mgmt.compute import models, types

NAMES = {**vars(models), **vars(types)}
# The list of sizes in the types has long been out of date; the catalogue has them.
OPEN = {"vmSize"}


def hints(kind):
    """Fields of a type by their names on the wire, and those that must be there."""
    fields = {}
    for base in reversed(kind.__mro__ if hasattr(kind, "__mro__") else [kind]):
        fields.update(getattr(base, "__annotations__", {}))
    return {name: resolve(hint) for name, hint in fields.items()}


def resolve(hint):
    if isinstance(hint, str):
        hint = eval(hint, NAMES)  # pylint: disable=eval-used
    if isinstance(hint, typing.ForwardRef):
        hint = eval(hint.__forward_arg__, NAMES)  # pylint: disable=eval-used
    return hint


def is_record(hint):
    return isinstance(hint, type) and hasattr(hint, "__total__")


def walk(value, hint, path):
    """Yields what is wrong, each with its place."""
    hint = resolve(hint)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is typing.Any:
        return
    if origin is typing.Union:
        if value is None and type(None) in inner:
            return
        wanted = [resolve(one) for one in inner if one is not type(None)]
        known = [one for one in wanted if isinstance(one, type) and issubclass(one, enum.Enum)]
        if known:
            values = {str(member.value).lower() for one in known for member in one}
            if not isinstance(value, str) or value.lower() not in values:
                yield f"{path}: {value!r} is none of {sorted(values)}"
            return
        problems = [list(walk(value, one, path)) for one in wanted]
        if all(problems):
            yield from problems[0]
    elif origin in (list, typing.List):
        if not isinstance(value, list):
            yield f"{path}: {type(value).__name__} instead of a list"
            return
        for number, one in enumerate(value):
            yield from walk(one, inner[0], f"{path}[{number}]")
    elif origin in (dict, typing.Dict):
        if not isinstance(value, dict):
            yield f"{path}: {type(value).__name__} instead of a map"
            return
        for key, one in value.items():
            yield from walk(one, inner[1], f"{path}.{key}")
    elif origin is not None and str(origin).endswith("Required"):
        yield from walk(value, inner[0], path)
    elif is_record(hint):
        yield from record(value, hint, path)
    elif isinstance(hint, type) and issubclass(hint, enum.Enum):
        if not isinstance(value, str) or value.lower() not in {str(m.value).lower() for m in hint}:
            yield f"{path}: {value!r} is no {hint.__name__}"
    elif isinstance(hint, type):
        plain = {float: (int, float), int: int, str: str, bool: bool}.get(hint)
        wrong = plain and (not isinstance(value, plain) or (isinstance(value, bool) and hint is not bool))
        if wrong:
            yield f"{path}: {type(value).__name__} instead of {hint.__name__}"


def record(value, hint, path):
    if not isinstance(value, dict):
        yield f"{path}: {type(value).__name__} instead of {hint.__name__}"
        return
    fields = hints(hint)
    for key, one in value.items():
        if key not in fields:
            yield f"{path}.{key}: {hint.__name__} has no such field"
        elif key in OPEN:
            yield from walk(one, str, f"{path}.{key}")
        else:
            yield from walk(one, fields[key], f"{path}.{key}")
    for key, one in fields.items():
        if str(typing.get_origin(one)).endswith("Required") and key not in value:
            yield f"{path}.{key}: is missing"


def violations(body):
    """Of a VM as it is put."""
    return list(walk(body, types.VirtualMachine, "vm"))
