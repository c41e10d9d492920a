"""What is counted of generated text: tokens, and the times between events that carry some.

The buckets are those that OpenTelemetry's GenAI conventions advise and vLLM uses, so that the router's figures stand
beside a model server's. They go on to 160 s for a first token, which a full model server may take, and begin at 2.5 ms
for a token, since several may come together.
"""

from msgspec.structs import astuple

from app.observability.metric_families import Family, counts, distributions
from app.protocols.token_usage import NOTHING, TAIL_BYTES, TokenUsage, usage_in

_MOST_PENDING = 64

FIRST_TOKEN_SECONDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5),
    *(0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0),
)
INTER_TOKEN_SECONDS = (
    *(0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 10.0),
)

FIRST_TOKEN = Family(
    "histogram",
    "router_time_to_first_token_seconds",
    "From a request's arrival in the router to the first event of its stream that carries output: text, reasoning, or "
    "a tool call.",
    ("model",),
)
INTER_TOKEN = Family(
    "histogram",
    "router_inter_token_seconds",
    "Between two events of a stream that carry output; 0 between those that come together.",
    ("model",),
)
TOKENS = Family(
    "counter",
    "router_tokens_total",
    "Tokens by kind: `input`, of which `cached`, and `output`, of which `reasoning`; from the response's `usage`, or, "
    "for the output of streams without it, the number of `events` that carry output.",
    ("model", "kind", "source"),
)


class TokenMetrics:
    """The metrics of text."""

    def __init__(self) -> None:
        self.first_token_seconds = distributions(FIRST_TOKEN, FIRST_TOKEN_SECONDS)
        self.inter_token_seconds = distributions(INTER_TOKEN, INTER_TOKEN_SECONDS)
        self._tokens = counts(TOKENS)
        self._pending: list[tuple[str, bytes]] = []

    def count_later(self, model: str, body: bytes) -> None:
        """Count what a JSON body that came at once says of its tokens: within a second, by `count_pending`.

        Reading one body between two requests takes 10 us, since the code for it has left the processor's caches by
        then; reading many in a row takes 2 us each. At most 64 ends of bodies of 16 KiB are kept. A worker that is
        killed does not count them.
        """
        self._pending.append((model, body[-TAIL_BYTES:]))
        if len(self._pending) >= _MOST_PENDING:
            self.count_pending()

    def count_pending(self) -> None:
        """Count the tokens of the bodies that were kept: every second, before a page is read, before a worker ends."""
        pending, self._pending = self._pending, []
        sums: dict[str, list[int]] = {}
        for model, end in pending:
            usage = usage_in(end)
            if usage is not NOTHING:
                total = sums.setdefault(model, [0, 0, 0, 0])
                total[0] += usage.input or 0
                total[1] += usage.output or 0
                total[2] += usage.cached or 0
                total[3] += usage.reasoning or 0
        for model, total in sums.items():
            self.count(model, TokenUsage(*total))

    def count(self, model: str, usage: TokenUsage) -> None:
        """Count what a response says of its tokens."""
        for kind, tokens in zip(TokenUsage.__struct_fields__, astuple(usage), strict=True):
            if tokens:
                self._tokens(model, kind, "usage").add(tokens)

    def count_events(self, model: str, events: int) -> None:
        """Count the events of a stream that does not say how many tokens it has."""
        if events:
            self._tokens(model, "output", "events").add(events)
