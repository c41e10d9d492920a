"""A Kubernetes API server for tests: EndpointSlices over HTTPS, listed and watched, with what can go wrong in between.

It keeps the slices and every change with its resource version, as the real one does, so that a watch yields exactly
what came after its version. `folder` gets the service account's `token` and `ca.crt`.
"""

import ipaddress
import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tests.support.certificates import certificate
from tests.support.http_server import HttpServer, QuietConnections

Object = dict[str, Any]


def endpoint(*addresses: str, uid: str = "", **conditions: Any) -> Object:
    """An endpoint of a slice, of the pod with this uid. No conditions: nothing is said of them."""
    made: Object = {"addresses": list(addresses), "conditions": conditions, "nodeName": "node-1", "zone": "z"}
    if uid:
        made["targetRef"] = {"kind": "Pod", "namespace": "ns", "name": f"pod-{uid}", "uid": uid}
    return made


def status(code: int, reason: str, retry_after_s: int | None = None) -> Object:
    """A Status, as an error's body or event has it."""
    details = {} if retry_after_s is None else {"details": {"retryAfterSeconds": retry_after_s}}
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": f"{reason} for a test",
        "reason": reason,
        "code": code,
        **details,
    }


class KubernetesApi(HttpServer):
    """`with KubernetesApi(folder) as api:` serves the Service `ns/llm`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._changed = threading.Condition()
        self._version = 100
        self._slices: dict[str, Object] = {}
        self._history: list[tuple[int, Object]] = []
        self._ended = 0
        self._errors: list[tuple[str, int, Object, dict[str, str]]] = []
        self.page = 0
        """The most slices that a page of a list has; 0: as the client says."""
        self.lists: list[dict[str, str]] = []
        self.watches: list[dict[str, str]] = []
        """The query of every list and of every watch that was asked for."""
        self.rotate_token("first")
        outer = self

        class Handler(QuietConnections, BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer._serve(self)

        super().__init__(Handler)
        authority = certificate("authority", [])
        own = certificate("api", [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))], authority)
        (folder / "ca.crt").write_bytes(authority[0].public_bytes(serialization.Encoding.PEM))
        (folder / "api.pem").write_bytes(
            own[0].public_bytes(serialization.Encoding.PEM)
            + own[1].private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "api.pem")
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        self.environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(self.port)}

    def __exit__(self, *failure: object) -> None:
        self.end_watches()
        super().__exit__(*failure)

    def rotate_token(self, token: str) -> None:
        """Let only this token in from now on, and give it to the pod."""
        self._token = token
        beside = self._folder / "token.new"
        beside.write_text(token)
        beside.replace(self._folder / "token")  # so that nobody reads half of it

    def put(
        self,
        name: str,
        endpoints: list[Object] | None,
        port: int = 8000,
        port_name: str = "http",
        address_type: str = "IPv4",
    ) -> None:
        """Add or change a slice."""
        made: Object = {
            "kind": "EndpointSlice",
            "apiVersion": "discovery.k8s.io/v1",
            "metadata": {"name": name, "namespace": "ns", "labels": {"kubernetes.io/service-name": "llm"}},
            "addressType": address_type,
            "endpoints": endpoints,
            "ports": [{"name": port_name, "protocol": "TCP", "port": port}],
        }
        self._change("MODIFIED" if name in self._slices else "ADDED", name, made)

    def delete(self, name: str) -> None:
        """Delete a slice."""
        self._change("DELETED", name, self._slices[name])

    def bookmark(self) -> None:
        """Send a bookmark, with a version that no slice has."""
        self._change("BOOKMARK", "", {"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "metadata": {}})

    def send_error(self, error: Object) -> None:
        """Send an ERROR event, which ends the watches."""
        with self._changed:
            self._history.append((self._version, {"type": "ERROR", "object": error}))
            self._changed.notify_all()

    def fail(self, verb: str, code: int, reason: str, **headers: str) -> None:
        """Let the next request of this verb (list, watch) fail."""
        with self._changed:
            self._errors.append((verb, code, status(code, reason), headers))

    def end_watches(self) -> None:
        """End the watches that are open, as after their timeout."""
        with self._changed:
            self._ended += 1
            self._changed.notify_all()

    def wait_watched(self, count: int) -> None:
        """Return once so many watches were asked for in all."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.watches) >= count, 20), self.watches

    def _change(self, kind: str, name: str, changed: Object) -> None:
        with self._changed:
            self._version += 1
            changed = {**changed, "metadata": {**changed["metadata"], "resourceVersion": str(self._version)}}
            if kind == "DELETED":
                del self._slices[name]
            elif kind != "BOOKMARK":
                self._slices[name] = changed
            self._history.append((self._version, {"type": kind, "object": changed}))
            self._changed.notify_all()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        url = urlsplit(handler.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        verb = "watch" if "watch" in query else "list"
        with self._changed:
            # What the watch begins with is settled before anyone may know of it.
            ended, since = self._ended, int(query.get("resourceVersion", 0))
            sent = next((at for at, (version, _) in enumerate(self._history) if version > since), len(self._history))
            (self.watches if verb == "watch" else self.lists).append(query)
            error = next((one for one in self._errors if one[0] == verb), None)
            if error is not None:
                self._errors.remove(error)
            self._changed.notify_all()
        if handler.headers["Authorization"] != f"Bearer {self._token}":
            _send(handler, 401, status(401, "Unauthorized"))
        elif url.path != "/apis/discovery.k8s.io/v1/namespaces/ns/endpointslices":
            _send(handler, 404, status(404, "NotFound"))
        elif error is not None:
            _send(handler, error[1], error[2], error[3])
        elif query.get("labelSelector") != "kubernetes.io/service-name=llm":
            _send(handler, 200, self._list({"limit": "0"}) | {"items": []})
        elif verb == "list":
            _send(handler, 200, self._list(query))
        else:
            self._watch(handler, sent, ended)

    def _list(self, query: dict[str, str]) -> Object:
        with self._changed:
            items = [{k: v for k, v in one.items() if k not in ("kind", "apiVersion")} for one in self._slices.values()]
            start, limit = int(query.get("continue", 0)), self.page or int(query.get("limit", 0)) or len(items)
            more = {"continue": str(start + limit)} if start + limit < len(items) else {}
            return {
                "kind": "EndpointSliceList",
                "apiVersion": "discovery.k8s.io/v1",
                "metadata": {"resourceVersion": str(self._version), **more},
                "items": items[start : start + limit],
            }

    def _watch(self, handler: BaseHTTPRequestHandler, sent: int, ended: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: len(self._history) > sent or self._ended > ended, 60)
                fresh, is_over = [event for _, event in self._history[sent:]], self._ended > ended
                sent += len(fresh)
            for event in fresh:
                line = json.dumps(event).encode() + b"\n"
                handler.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
            if is_over or any(event["type"] == "ERROR" for event in fresh):
                handler.wfile.write(b"0\r\n\r\n")
                return


def _send(handler: BaseHTTPRequestHandler, code: int, body: Object, headers: dict[str, str] | None = None) -> None:
    content = json.dumps(body).encode()
    handler.send_response(code)
    for name, value in {
        "Content-Type": "application/json",
        "Content-Length": str(len(content)),
        **(headers or {}),
    }.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(content)
