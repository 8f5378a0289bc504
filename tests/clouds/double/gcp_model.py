"""What Google's own discovery documents say of a call and of its answer: method, parameters, bodies."""

import json
import os
import re
from urllib.parse import unquote

import googleapiclient

DOCUMENTS = ("compute.v1", "cloudresourcemanager.v3")


def document(name):
    folder = os.path.dirname(googleapiclient.__file__)
    with open(os.path.join(folder, f"discovery_cache/documents/{name}.json")) as file:
        return json.load(file)


def wrong_labels(instance):
    """What is wrong with the labels of an instance and its disks, by "Requirements for labels"."""
    disks = [disk.get("initializeParams", {}) for disk in instance.get("disks", [])]
    wrong = []
    for labels in [thing.get("labels", {}) for thing in [instance, *disks]]:
        wrong += [f"{len(labels)} labels"] if len(labels) > 64 else []
        wrong += [f"no label: {key}={value}" for key, value in labels.items()
                  if not re.fullmatch("(?!goog)[a-z][a-z0-9_-]{0,62}", key)
                  or not re.fullmatch("[a-z0-9_-]{0,63}", value)]
    return wrong


class Model:
    def __init__(self):
        self.methods = []
        for name in DOCUMENTS:
            root = document(name)
            self.methods += self.collect(root, root)
        # `tagValues/namespaced` before `tagValues/{name}`.
        self.methods.sort(key=lambda method: method[1].groups)

    def collect(self, root, node):
        for method in node.get("methods", {}).values():
            path = re.sub(r"\{[+]?(\w+)\}", r"(?P<\1>[^/]+)", method.get("flatPath", method["path"]))
            path = re.compile("/" + root["servicePath"] + path + "$")
            yield method["httpMethod"], path, method, root
        for resource in node.get("resources", {}).values():
            yield from self.collect(root, resource)

    def look_up(self, request):
        for verb, path, method, root in self.methods:
            match = path.match(request.path) if verb == request.method else None
            if match:
                return method, {key: unquote(value) for key, value in match.groupdict().items()}, root
        return None, {}, None

    def find(self, request):
        """(method, parameters of the path) or (None, {})."""
        return self.look_up(request)[:2]

    def check(self, request):
        """What is wrong with a request."""
        method, at, root = self.look_up(request)
        if method is None:
            return ["the documents have no such method"]
        schemas, wrong = root["schemas"], []
        known = {**root["parameters"], **method.get("parameters", {})}
        # Of a path with several parts in one parameter the document names the whole, the path each part.
        whole = [name for name, p in method.get("parameters", {}).items() if p["location"] == "path" and name not in at]
        for name, value in {**request.query, **at}.items():
            # System parameters of every Google API; the document has some of them without the $.
            if name in ("$alt", "$apiVersion") or (whole and name in at):
                continue
            if name not in known:
                wrong.append(f"unknown parameter {name}")
            else:
                wrong += self.value(schemas, known[name], value, name, text=True)
        for name, schema in method.get("parameters", {}).items():
            if schema.get("required") and name not in at and name not in request.query and name not in whole:
                wrong.append(f"parameter {name} is required")
        if "request" in method:
            try:
                body = request.json()
            except ValueError:
                return wrong + ["the body is not JSON"]
            wrong += self.value(schemas, {"$ref": method["request"]["$ref"]}, body, "body")
        elif request.body and request.body != b"{}":
            wrong.append("the method takes no body")
        return wrong

    def check_answer(self, request, body):
        """What is wrong with an answer of success: the double must not say what Google cannot."""
        method, _, root = self.look_up(request)
        return self.value(root["schemas"], {"$ref": method["response"]["$ref"]}, body, "answer", sent=False)

    def value(self, schemas, schema, value, where, text=False, sent=True):
        def inner(schema, value, where):
            return self.value(schemas, schema, value, where, text, sent)

        if "$ref" in schema:
            schema = schemas[schema["$ref"]]
        kind = schema.get("type")
        wrong = []
        if kind == "object":
            if not isinstance(value, dict):
                return [f"{where} is no object"]
            properties, more = schema.get("properties", {}), schema.get("additionalProperties")
            for key, item in value.items():
                if key in properties:
                    if sent and "Output Only" in properties[key].get("description", ""):
                        wrong.append(f"{where}.{key} is output only")
                    wrong += inner(properties[key], item, f"{where}.{key}")
                elif more:
                    wrong += inner(more, item, f"{where}.{key}")
                else:
                    wrong.append(f"{where}.{key} is unknown")
            return wrong
        if kind == "array":
            if not isinstance(value, list):
                return [f"{where} is no array"]
            for n, item in enumerate(value):
                wrong += inner(schema["items"], item, f"{where}[{n}]")
            return wrong
        if kind in ("integer", "number"):
            fits = re.fullmatch(r"-?\d+", str(value)) if text else isinstance(value, (int, float))
            return [] if fits and not isinstance(value, bool) else [f"{where} is no {kind}: {value!r}"]
        if kind == "boolean":
            fits = value in ("true", "false") if text else isinstance(value, bool)
            return [] if fits else [f"{where} is no boolean: {value!r}"]
        if kind == "string":
            if not isinstance(value, str):
                return [f"{where} is no string: {value!r}"]
            if "enum" in schema and value not in schema["enum"]:
                wrong.append(f"{where} is none of its values: {value!r}")
            if "pattern" in schema and not re.fullmatch(schema["pattern"], value):
                wrong.append(f"{where} does not fit {schema['pattern']}: {value!r}")
            if schema.get("format") in ("int64", "uint64") and not re.fullmatch(r"-?\d+", value):
                wrong.append(f"{where} is no number: {value!r}")
        return wrong
