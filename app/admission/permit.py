"""What admission gives to a request: a permit, or a ticket for the wait queue."""

from typing import Protocol

from gevent.event import Event

from app.errors import Overload, QueueTimeout
from app.native import monotonic


class Issuer(Protocol):
    """The limiter that issued a permit or a ticket."""

    def observe(self, served_s: float) -> None:
        """Note how long a permit was held by a request that was served."""

    def give_back(self) -> None:
        """Take one permit back."""

    def settle(self, ticket: "Ticket", *, keep: bool) -> bool:
        """Take a ticket out of the queue. Returns whether a permit was granted to it and kept."""

    def retry_after(self) -> int:
        """Returns the seconds until a new request would get a permit."""


class Permit:
    """The right to be inside the model. It comes back once, however often `release` is called."""

    __slots__ = ("_issuer", "_taken_at", "in_flight", "limit")

    def __init__(self, issuer: Issuer, limit: int = 0, in_flight: int = 0) -> None:
        self._issuer: Issuer | None = issuer
        self._taken_at = monotonic()
        self.limit = limit
        """How many permits there were when it was asked for, and, as `in_flight`, how many were taken then."""
        self.in_flight = in_flight

    def __repr__(self) -> str:
        return f"<Permit {'released' if self._issuer is None else f'held {monotonic() - self._taken_at:.3f} s'}>"

    def release(self, served: bool = True) -> None:
        """Give the permit back. Without `served` (the client left) its time does not count as a service time."""
        issuer, self._issuer = self._issuer, None
        if issuer is not None:
            if served:
                issuer.observe(monotonic() - self._taken_at)
            issuer.give_back()


class Ticket:
    """A request's place in the wait queue. Whoever holds it must `wait` or `cancel`."""

    __slots__ = ("_issuer", "_left", "admitted", "ahead", "event", "number", "overload")

    def __init__(self, issuer: Issuer, number: int, ahead: int = 0) -> None:
        """`ahead` others waited when it joined the queue."""
        self._issuer = issuer
        self._left = False
        self.ahead = ahead
        self.overload = Overload("router", 0, 0, ahead)
        """What it waits for, as it was then. The limiter replaces this once it has left the lock."""
        self.number = number
        self.event = Event()
        self.admitted = False
        """Whether this worker's row holds the permit already."""

    def __repr__(self) -> str:
        state = "left" if self._left else "admitted" if self.admitted else "waiting"
        return f"<Ticket {self.number} {state}>"

    def wait(self, timeout_s: float) -> Permit:
        """Wait for a permit. Raises QueueTimeout after `timeout_s`; whatever is raised, the place is given up.

        Call it once, and not after `cancel`: raises RuntimeError.
        """
        if self._left:
            raise RuntimeError(f"{self!r} has no place in the queue any more")
        try:
            self.event.wait(timeout_s)
        except BaseException:  # the client left, or the worker is being stopped
            self.cancel()
            raise
        if not self._leave(keep=True):
            message = f"no permit came free within {timeout_s:g} s"
            raise QueueTimeout(message, self._issuer.retry_after(), self.overload)
        return Permit(self._issuer, self.overload.limit, self.overload.in_flight)

    def cancel(self) -> None:
        """Give the place up, and the permit that may have been granted. Does nothing after `wait` or `cancel`."""
        self._leave(keep=False)

    def _leave(self, *, keep: bool) -> bool:
        """Leave the queue once. Returns whether a permit was granted and kept."""
        if self._left:
            return False
        self._left = True
        return self._issuer.settle(self, keep=keep)
