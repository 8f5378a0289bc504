"""moto as the double of EC2 asks it, and the words of EC2's query protocol."""

import os
import re
import uuid
import xml.etree.ElementTree as ET
from urllib.parse import urlencode

for switch in ("MOTO_ENABLE_AMI_VALIDATION", "MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION",
               "MOTO_ENABLE_KEYPAIR_VALIDATION"):
    os.environ[switch] = "1"
os.environ["MOTO_EC2_LOAD_DEFAULT_AMIS"] = "false"

from base import Answer  # noqa: E402
from moto.server import DomainDispatcherApplication, create_backend_app  # noqa: E402
from werkzeug.test import Client  # noqa: E402

REGION = "us-east-1"
NS = "http://ec2.amazonaws.com/doc/2016-11-15/"
ET.register_namespace("", NS)
MOTO = Client(DomainDispatcherApplication(create_backend_app))
# What moto needs to know whom it plays.
SIGNED = "AWS4-HMAC-SHA256 Credential=AKIADOUBLE/20260101/{}/{}/aws4_request, SignedHeaders=host, Signature=0"


def refusal(status, code, message="no", **headers):
    request = str(uuid.uuid4())
    body = (f"<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors>"
            f"<RequestID>{request}</RequestID></Response>")
    headers = {key.replace("_", "-"): value for key, value in headers.items()}
    return Answer(status, body, {"Content-Type": "text/xml", "x-amzn-requestid": request, **headers})


def reply(action, inside):
    body = f'<{action}Response xmlns="{NS}"><requestId>{uuid.uuid4()}</requestId>{inside}</{action}Response>'
    return Answer(200, body, {"Content-Type": "text/xml"})


def moto(params, service="ec2"):
    """One call of moto's; (status, body)."""
    headers = {"Authorization": SIGNED.format(REGION, service), "Host": f"{service}.{REGION}.amazonaws.com",
               "Content-Type": "application/x-www-form-urlencoded"}
    answer = MOTO.post("/", data=urlencode(params), headers=headers,
                       base_url=f"http://{service}.{REGION}.amazonaws.com")
    # It has not made up its mind which version's namespace to use.
    body = re.sub(r"""xmlns=["'][^"']*["']""", f'xmlns="{NS}"', answer.get_data(as_text=True), count=1)
    return answer.status_code, body


def ask(action, **params):
    """One call of our own to moto; the text of what comes back."""
    status, body = moto({"Action": action, "Version": "2016-11-15", **params})
    if status != 200:
        raise RuntimeError(f"{action}: {body}")
    return body


def found(text, tag):
    return re.search(f"<{tag}>([^<]*)</{tag}>", text).group(1)


def numbered(params, prefix):
    """The values of `Prefix.1`, `Prefix.2`, …"""
    values, n = [], 1
    while f"{prefix}.{n}" in params:
        values.append(params[f"{prefix}.{n}"])
        n += 1
    return values


def filters(params):
    named, n = {}, 1
    while f"Filter.{n}.Name" in params:
        named[params[f"Filter.{n}.Name"]] = numbered(params, f"Filter.{n}.Value")
        n += 1
    return named


def tags(params, kind):
    """The tags that a RunInstances asks for on that kind of thing."""
    n = 1
    while f"TagSpecification.{n}.ResourceType" in params:
        prefix = f"TagSpecification.{n}"
        if params[f"{prefix}.ResourceType"] == kind:
            wanted, m = {}, 1
            while f"{prefix}.Tag.{m}.Key" in params:
                wanted[params[f"{prefix}.Tag.{m}.Key"]] = params.get(f"{prefix}.Tag.{m}.Value", "")
                m += 1
            return wanted
        n += 1
    return {}
