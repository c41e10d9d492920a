"""How long an endpoint usually takes to the first byte of a response, and how long a wait is too long to be usual.

The estimate is that of TCP for its round trips (RFC 6298 section 2): a moving mean, and a moving mean of the deviation
from it. Both are learned from successful responses, under the lock. A process that is killed between the two stores
leaves one of them a sample behind the other, which the next samples make good.
"""

from app.routing.endpoint_records import EndpointRecords

LEAST_US = 100_000
"""No shorter wait is too long: a client that leaves sooner says nothing about the endpoint."""
UNKNOWN_US = 500_000
"""A longer wait is too long where the usual time is not known yet."""


def learn(records: EndpointRecords, shared_id: int, took_us: int) -> None:
    """Take one more time to a first byte into account. The lock is held."""
    mean = records.first_byte_us[shared_id]
    if not mean:
        records.first_byte_deviation_us[shared_id] = took_us >> 1
        records.first_byte_us[shared_id] = took_us
        return
    off = took_us - mean
    deviation = records.first_byte_deviation_us[shared_id]
    records.first_byte_deviation_us[shared_id] = deviation + ((abs(off) - deviation) >> 2)
    records.first_byte_us[shared_id] = mean + (off >> 3) or 1  # 0 would say that nothing is known


def too_long_us(records: EndpointRecords, shared_id: int) -> int:
    """Returns after how long without a first byte an endpoint is slower than it ever is."""
    mean = records.first_byte_us[shared_id]
    if not mean:
        return UNKNOWN_US
    return max(LEAST_US, mean + max(mean, 4 * records.first_byte_deviation_us[shared_id]))
