"""Request pacing: how many requests may begin in one cycle of the event loop."""

from itertools import pairwise

import gevent

from app.server.pacing import REQUESTS_PER_CYCLE, RequestPacer


def test_few_pass_in_a_turn_in_order_and_nobody_is_forgotten() -> None:
    """Of many that are ready at once each turn lets only so many pass, first come, first served, until none is left."""
    loop = gevent.get_hub().loop
    passed: list[int] = []
    passed_by_turn = [0]
    sampler = loop.prepare()
    sampler.start(lambda: passed_by_turn.append(len(passed)))
    pacer = RequestPacer()

    def ask(number: int) -> None:
        pacer.wait_for_turn()
        passed.append(number)

    count = 10 * REQUESTS_PER_CYCLE
    # The timeout keeps the loop alive, as a worker's listeners do. It begins now, whereas that of `joinall` would begin
    # when the loop last ran, which is long ago if other tests ran since.
    with gevent.Timeout(20):
        gevent.joinall([gevent.spawn(ask, number) for number in range(count)], raise_error=True)
    sampler.stop()
    assert passed == list(range(count))
    assert max(later - earlier for earlier, later in pairwise([*passed_by_turn, count])) <= 2 * REQUESTS_PER_CYCLE


def test_a_few_never_wait() -> None:
    """Without overload nobody is held up: whoever comes alone passes without a switch."""
    pacer = RequestPacer()
    for _ in range(REQUESTS_PER_CYCLE):
        pacer.wait_for_turn()
