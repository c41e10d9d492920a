"""A name server that answers as a test says, over UDP and TCP on one loopback port."""

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from dns import flags, message, rcode, rdatatype, rrset

Script = Callable[[message.Message, bool], bytes | None]
"""Takes a question, and whether it came over TCP; returns the bytes of the answer, None for silence."""


def records(
    *lines: str, code: int = rcode.NOERROR, authority: tuple[str, ...] = (), extra: tuple[str, ...] = ()
) -> Script:
    """A script: these records, in master file form, of the kind that is asked for; aliases always."""

    def answer(question: message.Message, tcp: bool) -> bytes:
        reply = message.make_response(question)
        reply.flags |= flags.RA
        reply.set_rcode(rcode.Rcode(code))
        wanted = question.question[0].rdtype
        for section, texts in ((reply.answer, lines), (reply.authority, authority), (reply.additional, extra)):
            for text in texts:
                name, ttl, kind, data = text.split(maxsplit=3)
                if section is not reply.answer or rdatatype.from_text(kind) in (wanted, rdatatype.CNAME):
                    known = next(
                        (
                            one
                            for one in section
                            if one.name.to_text() == name and one.rdtype == rdatatype.from_text(kind)
                        ),
                        None,
                    )
                    made = rrset.from_text(name, int(ttl), "IN", kind, data)
                    if known is None:
                        section.append(made)
                    else:
                        known.update(made)  # type: ignore[no-untyped-call]
        return reply.to_wire(max_size=65535)

    return answer


def failure(code: rcode.Rcode) -> Script:
    """A script: this response code, and nothing else."""
    return records(code=code)


def silence(question: message.Message, tcp: bool) -> None:
    """A script: no answer."""


def by_kind(**scripts: Script) -> Script:
    """A script: one for each kind of record."""
    return lambda question, tcp: scripts[rdatatype.to_text(question.question[0].rdtype)](question, tcp)


class ScriptedDns:
    """`with ScriptedDns(script) as names:` serves; `names.script` may be replaced at any time."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.over_tcp = 0
        self.asked = 0
        """Questions over UDP."""
        self._tcp = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._tcp.getsockname()[1]
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind(("127.0.0.1", self.port))
        self._stopped = False
        self._threads = [threading.Thread(target=one, daemon=True) for one in (self._serve_udp, self._serve_tcp)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped = True
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wake:
            wake.sendto(b"", ("127.0.0.1", self.port))
        self._tcp.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        self._udp.close()
        self._tcp.close()

    def _serve_udp(self) -> None:
        while not self._stopped:
            data, client = self._udp.recvfrom(65535)
            self.asked += bool(data)
            if data and (answer := self.script(message.from_wire(data), False)) is not None:
                self._udp.sendto(answer, client)

    def _serve_tcp(self) -> None:
        while True:
            try:
                sock, _ = self._tcp.accept()
            except OSError:
                return
            with sock, suppress(ConnectionError):  # whoever has waited too long is gone
                self._answer_over_tcp(sock)

    def _answer_over_tcp(self, sock: socket.socket) -> None:
        with sock.makefile("rb") as stream:
            length = int.from_bytes(stream.read(2))
            if not length or len(data := stream.read(length)) < length:
                return  # it left before it had asked
            self.over_tcp += 1
            if (answer := self.script(message.from_wire(data), True)) is not None:
                sock.sendall(struct.pack("!H", len(answer)) + answer)
