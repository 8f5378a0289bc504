"""Checks requests of AWS's query protocol against the service model that botocore has from Amazon: names
that it does not know, types and enumerations that it would refuse, what is required and missing."""

import base64
import binascii

from botocore.loaders import Loader
from botocore.model import ServiceModel
from botocore.validate import ParamValidator

MODELS = {}


def model(service):
    if service not in MODELS:
        MODELS[service] = ServiceModel(Loader().load_service_model(service, "service-2"), service)
    return MODELS[service]


def violations(service, params):
    """What the model would refuse in a request, as texts."""
    known = model(service)
    action, version = params.get("Action"), params.get("Version")
    if action not in known.operation_names:
        return [f"{action} is no operation of {service}"]
    problems = []
    if version != known.api_version:
        problems.append(f"version {version}, the model has {known.api_version}")
    shape = known.operation_model(action).input_shape
    fields = {key: value for key, value in params.items() if key not in ("Action", "Version")}
    if shape is None:
        return problems + [f"{key} is not known" for key in fields]
    value = read(nest(fields), shape, action, problems)
    report = ParamValidator().validate(value, shape)
    if report.has_errors():
        problems.append(report.generate_report())
    return problems


def nest(fields):
    """`A.1.B=x` becomes {"A": {"1": {"B": "x"}}}."""
    tree = {}
    for key, value in fields.items():
        *path, last = key.split(".")
        at = tree
        for part in path:
            at = at.setdefault(part, {})
        at[last] = value
    return tree


def wire_name(name, shape):
    """A member's name in a request of EC2's dialect."""
    told = shape.serialization.get("queryName")
    if told:
        return told
    name = shape.serialization.get("name", name)
    return name[0].upper() + name[1:]


def read(tree, shape, where, problems):
    """The value that the model has for a part of a request; notes what does not fit."""
    kind = shape.type_name
    if kind in ("structure", "list") and not isinstance(tree, dict):
        problems.append(f"{where} is not a {kind}: {tree!r}")
        return {} if kind == "structure" else []
    if kind == "structure":
        members = {wire_name(name, member): (name, member) for name, member in shape.members.items()}
        value = {}
        for key, part in tree.items():
            if key not in members:
                problems.append(f"{where}.{key} is not known")
                continue
            name, member = members[key]
            value[name] = read(part, member, f"{where}.{key}", problems)
        return value
    if kind == "list":
        numbers = sorted(tree, key=lambda key: int(key) if key.isdigit() else 0)
        if numbers != [str(n + 1) for n in range(len(tree))]:
            problems.append(f"{where} is numbered {numbers}")
        return [read(tree[n], shape.member, f"{where}.{n}", problems) for n in numbers]
    return scalar(tree, shape, where, problems)


def scalar(text, shape, where, problems):
    kind = shape.type_name
    try:
        if not isinstance(text, str):
            raise ValueError
        if kind == "boolean":
            return {"true": True, "false": False}[text]
        if kind in ("integer", "long"):
            return int(text)
        if kind in ("float", "double"):
            return float(text)
        if kind == "blob":
            return base64.b64decode(text, validate=True)
    except (ValueError, KeyError, binascii.Error):
        problems.append(f"{where} is not a {kind}: {text!r}")
        return None
    if kind == "string" and shape.enum and text not in shape.enum:
        problems.append(f"{where} is none of the model's words: {text!r}")
    return text
