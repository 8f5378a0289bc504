"""What every cloud's double is made of: an HTTP server that records each call, has it checked against
the cloud's published model, lets things go wrong when told to, and answers questions about itself.

    GET  /_double/calls        [{"at", "operation", "name", "status", "method", "path"}, ...]
    GET  /_double/violations   ["...", ...]   what the cloud's own model would refuse
    GET  /_double/resources    {"vm": 1, "disk": 1, "nic": 1, "address": 0}   what costs money now
    GET  /_double/tags         [{"kind": "vm", "tags": {"key": "value"}}, ...]   of what costs money and has tags
    GET  /_double/facts        {"image": "ami-..."}   what is there before any call, where its ids are not fixed
    POST /_double/fault        {"operation", "fault", ...}   for the next call of that operation
    POST /_double/set          {...}   whatever a cloud's double has to set (capacity, quotas, pages)
                               {"slow": seconds}   before each create is answered, after it was done
                               {"machines": socket}   where machines are started for VMs (see src/pods/machines.rs)
    POST /_double/reset        {}

Operations are create, delete, list, check and other: what the call is for, not what it is called.
Faults:
    {"fault": "fail", "kind": "capacity" | "quota" | ..., "after": seconds}   refused, nothing done
    {"fault": "lost"}       done, and the connection is closed instead of an answer
    {"fault": "partial"}    stops halfway: parts are left
    {"fault": "broken"}     a list whose second page fails
    {"fault": "garbage", "body": "<html>", "status": 200}
"""

import json
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


class Lost(Exception):
    """The call has had its effect; its caller gets no answer."""


class Request:
    """One call."""

    def __init__(self, method, target, headers, body):
        parts = urlsplit(target)
        self.method, self.path, self.headers, self.body = method, parts.path, headers, body
        self.query = {key: values[-1] for key, values in parse_qs(parts.query, True).items()}

    def json(self):
        return json.loads(self.body or b"{}")


class Answer:
    """What the caller gets. `body` may be bytes, text, or anything that becomes JSON."""

    def __init__(self, status=200, body=None, headers=None):
        self.status, self.headers, self.delay = status, dict(headers or {}), 0
        if isinstance(body, bytes):
            self.body = body
        elif isinstance(body, str):
            self.body = body.encode()
        elif body is None:
            self.body = b""
        else:
            self.body = json.dumps(body).encode()
            self.headers.setdefault("Content-Type", "application/json")


class Bucket:
    """A cloud's own token bucket; `take` says how many seconds are missing."""

    def __init__(self, size, per_second):
        self.size, self.per_second = size, per_second
        self.tokens, self.at = float(size), time.monotonic()

    def take(self, number=1):
        now = time.monotonic()
        self.tokens = min(self.size, self.tokens + (now - self.at) * self.per_second)
        self.at = now
        if self.tokens < number:
            return (number - self.tokens) / self.per_second
        self.tokens -= number
        return 0.0


class Cloud:
    """A double derives from this. `serve` is called under the lock."""

    def __init__(self):
        self.lock = threading.RLock()
        self.machines, self.slow = None, 0
        self.reset()

    def reset(self):
        self.calls, self.violations, self.faults = [], [], []

    # What a double must have.

    def classify(self, request):
        """(operation, name of the VM or "") of a call."""
        raise NotImplementedError

    def serve(self, request):
        """The Answer; may raise Lost."""
        raise NotImplementedError

    def refuse(self, kind, after, request):
        """The Answer by which this cloud says `kind`."""
        raise NotImplementedError

    def validate(self, request):
        """Whatever the cloud's published model would refuse in this call, as texts."""
        return []

    def resources(self):
        return {}

    def tags(self):
        return []

    def facts(self):
        return {}

    def set(self, values):
        raise KeyError(f"nothing to set: {values}")

    # What it is given.

    def fault(self, operation, *names):
        """Takes the next fault of that operation out, if it is one of those."""
        for fault in self.faults:
            if fault["operation"] == operation and fault["fault"] in names:
                self.faults.remove(fault)
                return fault
        return None

    def boot(self, key, name, user_data):
        """Starts a machine for a VM and gives its address; None if nobody has machines. `user_data`: what
        this cloud's metadata service gives in the VM."""
        return self.ask_machines({"boot": key, "name": name, "user_data": user_data}).get("address")

    def halt(self, key):
        """Ends the machine of a VM, if there is one."""
        self.ask_machines({"halt": key})

    def ask_machines(self, words):
        if not self.machines:
            return {}
        with socket.socket(socket.AF_UNIX) as machines:
            machines.connect(self.machines)
            machines.sendall(json.dumps(words).encode() + b"\n")
            line = machines.makefile().readline()
        answer = json.loads(line) if line else {"error": "no answer"}
        if "error" in answer:
            self.violations.append(f"machine of {words.get('boot', words.get('halt'))}: {answer['error']}")
        return answer

    def answer(self, request):
        with self.lock:
            operation, name = self.classify(request)
            call = {"at": time.time(), "operation": operation, "name": name, "status": 0,
                    "method": request.method, "path": request.path}
            self.calls.append(call)
            self.violations += [f"{request.method} {request.path}: {v}" for v in self.validate(request)]
            fault = self.fault(operation, "fail", "garbage")
            if fault and fault["fault"] == "fail":
                answer = self.refuse(fault["kind"], fault.get("after"), request)
            elif fault:
                answer = Answer(fault.get("status", 200), fault["body"])
            else:
                lost = self.fault(operation, "lost")
                answer = self.serve(request)
                if lost:
                    raise Lost
            call["status"] = answer.status
            if operation == "create" and request.method in ("PUT", "POST"):
                answer.delay = self.slow
            return answer

    def control(self, request):
        with self.lock:
            what = request.path.removeprefix("/_double/")
            if request.method == "GET":
                known = {"calls": lambda: self.calls, "violations": lambda: self.violations,
                         "resources": self.resources, "tags": self.tags, "facts": self.facts}
                return Answer(200, known[what]()) if what in known else Answer(404, "no such question")
            if what == "fault":
                self.faults.append(request.json())
            elif what == "set":
                values = request.json()
                self.machines = values.pop("machines", self.machines)
                self.slow = values.pop("slow", self.slow)
                if values:
                    self.set(values)
            elif what == "reset":
                self.reset()
            else:
                return Answer(404, "no such command")
            return Answer(200, {})


def handler(cloud):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def respond(self):
            length = int(self.headers.get("Content-Length") or 0)
            request = Request(self.command, self.path, self.headers, self.rfile.read(length))
            try:
                control = request.path.startswith("/_double/")
                answer = cloud.control(request) if control else cloud.answer(request)
            except Lost:
                self.close_connection = True
                return
            time.sleep(answer.delay)
            try:
                self.reply(answer)
            except (BrokenPipeError, ConnectionResetError):
                # Whoever asked did not wait for the answer.
                self.close_connection = True

        def reply(self, answer):
            self.send_response(answer.status)
            for key, value in answer.headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        do_GET = do_PUT = do_POST = do_DELETE = do_PATCH = do_HEAD = respond

        def log_message(self, *_):
            pass

    return Handler


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def handle_error(self, request, client_address):
        # A client that was killed in the middle of its words is no news.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def run(cloud, address="127.0.0.1"):
    """Serves until standard input ends, which is the end of whoever started it."""
    server = Server((address, 0), handler(cloud))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"listening http://{address}:{server.server_address[1]}", flush=True)
    sys.stdin.read()
    server.shutdown()
