"""The HTTP side of the fake API server."""

import json
import re
import socket
import sys
import threading
import time
import traceback
from bisect import bisect_right
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from fake_api import PATH, Cluster, Fault, Refused, dumps, selects
from field_ownership import Object
from permissions import Rules, allows

VERBS = {"POST": "create", "PATCH": "patch", "PUT": "update", "DELETE": "delete"}
BOOKMARK_S = 0.2


class FakeServer(ThreadingHTTPServer):
    """Serves a cluster on a port that the system chose. Use it in a `with`."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, rules: Rules) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.cluster = Cluster()
        self.rules = rules
        self.requests: list[tuple[str, str, int]] = []
        self.forbidden: list[str] = []
        self.errors: list[str] = []
        self.faults: list[Fault] = []
        self.down = False
        self.silent = False
        self.epoch = 0
        self.watches = 0
        self._connections: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> "FakeServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep what went wrong in the server itself. Connections that were cut are no errors."""
        error = sys.exception()
        if not isinstance(error, OSError):
            self.errors.append(traceback.format_exc())

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self._connections.add(connection)
        return connection, address

    def cut(self) -> None:
        """Cut every connection, watches too."""
        self.epoch += 1
        for connection in list(self._connections):
            self._connections.discard(connection)
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def writes(self) -> list[tuple[str, str]]:
        """Returns the writes so far, those to the lease left out: method and path."""
        return [(method, path) for method, path, _ in self.requests if method != "GET" and "/leases" not in path]

    def fault(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and fault.method == method and re.search(fault.path, path):
                fault.times -= 1
                return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: FakeServer

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        if self.server.down:
            self.close_connection = True
            return
        url = urlsplit(self.path)
        query = dict(parse_qsl(url.query))
        length = int(self.headers.get("Content-Length") or 0)
        content = self.rfile.read(length)
        if len(content) < length:  # the client was killed
            raise ConnectionResetError
        body = json.loads(content or "null")
        headers: dict[str, str] = {}
        try:
            status, shown = self._respond(url.path, query, body)
        except Refused as refusal:
            shown = {"kind": "Status", "status": "Failure", "code": refusal.code}
            shown |= {"reason": refusal.reason, "message": refusal.message}
            status, headers = refusal.code, refusal.headers
        # Before the response: the next request may follow it at once, in another thread.
        self.server.requests.append((self.command, self.path, status))
        if shown is not None:
            self._send(status, shown, headers)

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _serve  # noqa: N815  # as http.server calls them

    def _send(self, status: int, shown: Object, headers: dict[str, str]) -> None:
        content = dumps(shown)
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def _respond(self, path: str, query: dict[str, str], body: Any) -> tuple[int, Object | None]:
        found = PATH.fullmatch(path)
        if not found:
            raise Refused(404, "NotFound", path)
        self._check_rights(found, query)
        fault = self.server.fault(self.command, self.path)
        if fault:
            time.sleep(fault.hold_s)
            if fault.code == 0:
                raise ConnectionResetError
            raise Refused(fault.code, "Injected", fault.message, **fault.headers)
        cluster, plural = self.server.cluster, found["plural"]
        if plural in cluster.absent:
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        if self.command == "GET" and "name" in found.groupdict() and not found["name"]:
            return (200, self._list(found, query)) if "watch" not in query else self._watch(found, query)
        return self._one(found, query, body)

    def _check_rights(self, found: "re.Match[str]", query: dict[str, str]) -> None:
        verb = VERBS.get(self.command) or ("get" if found["name"] else "watch" if "watch" in query else "list")
        resource = f"{found['plural']}/{found['sub']}" if found["sub"] else found["plural"]
        verbs = ["patch", "create"] if verb == "patch" and not found["sub"] else [verb]  # apply may have to create
        for each in verbs:
            if not allows(self.server.rules, found["group"] or "", resource, each, found["name"]):
                self.server.forbidden.append(f"{each} {resource} {found['name']}")
                raise Refused(403, "Forbidden", f"cannot {each} {resource}")

    def _one(self, found: "re.Match[str]", query: dict[str, str], body: Any) -> tuple[int, Object]:
        cluster, plural = self.server.cluster, found["plural"]
        key = (found["namespace"], found["name"] or (body or {}).get("metadata", {}).get("name", ""))
        live = cluster.get(plural, key)
        if self.command == "POST":
            if live:
                raise Refused(409, "AlreadyExists", f"{key[1]} already exists")
            return 201, cluster.put(plural, body, query["fieldManager"])
        if self.command == "PATCH":
            assert self.headers["Content-Type"] == "application/apply-patch+yaml"
            owner = (query["fieldManager"], "Apply", found["sub"] or "")
            return 200, cluster.apply(plural, key, body, owner, force=query["force"] == "true")
        if live is None:
            raise Refused(404, "NotFound", f"{plural} {key[1]} not found")
        if self.command == "PUT":
            if body["metadata"]["resourceVersion"] != live["metadata"]["resourceVersion"]:
                raise Refused(409, "Conflict", "the object has been modified")
            return 200, cluster.put(plural, body, query["fieldManager"])
        if self.command == "DELETE":
            if body and body["preconditions"]["uid"] != live["metadata"]["uid"]:
                raise Refused(409, "Conflict", "precondition failed")
            cluster.delete(plural, key)
        return 200, live

    def _list(self, found: "re.Match[str]", query: dict[str, str]) -> Object:
        cluster = self.server.cluster
        with cluster.changed:
            items = [
                item
                for item in cluster.list(found["plural"])
                if selects(query, item) and found["namespace"] in {None, item["metadata"]["namespace"]}
            ]
            return {"metadata": {"resourceVersion": str(cluster.version)}, "items": items}

    def _watch(self, found: "re.Match[str]", query: dict[str, str]) -> tuple[int, None]:
        version, epoch = int(query["resourceVersion"]), self.server.epoch
        cluster = self.server.cluster
        self.server.watches += 1
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        end = time.monotonic() + float(query["timeoutSeconds"])
        bookmarked_at = time.monotonic()
        while self.server.epoch == epoch and time.monotonic() < end:
            with cluster.changed:
                if version < cluster.oldest:
                    gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
                    events = [{"type": "ERROR", "object": gone}]
                else:
                    events = list(self._events(found, query, version))
                    version = cluster.version
                    if not events and not self.server.silent:
                        cluster.changed.wait(0.3)
            if not events and time.monotonic() - bookmarked_at > BOOKMARK_S:
                bookmarked_at = time.monotonic()
                events = [{"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(version)}}}]
            if self.server.silent:
                time.sleep(0.05)
                continue
            for event in events:
                self._chunk(dumps(event) + b"\n")
            if events and events[0]["type"] == "ERROR":
                break
        self._chunk(b"")
        return 200, None

    def _chunk(self, content: bytes) -> None:
        self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")

    def _events(self, found: "re.Match[str]", query: dict[str, str], after: int) -> Any:
        log = self.server.cluster.log.get(found["plural"], [])
        for _, change, item, before in log[bisect_right(log, after, key=lambda record: record[0]) :]:
            if found["namespace"] not in {None, item["metadata"]["namespace"]}:
                continue
            now, was = selects(query, item), selects(query, before)
            if now or was:
                # One that leaves the selection is told as deleted, and one that enters it as added.
                kind = "DELETED" if was and not now else "ADDED" if change == "MODIFIED" and not was else change
                yield {"type": kind, "object": item}
