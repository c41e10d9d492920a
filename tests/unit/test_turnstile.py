"""The worker's turnstile: how many requests may begin in one turn of the event loop."""

import gevent

from app.worker import _BEGIN_A_TURN, _Turnstile


def test_few_pass_in_a_turn_in_order_and_nobody_is_forgotten() -> None:
    """Of many that are ready at once each turn lets only so many pass, first come, first served, until none is left."""
    turnstile = _Turnstile()
    passed: list[int] = []

    def ask(number: int) -> None:
        turnstile.pass_through()
        passed.append(number)

    askers = [gevent.spawn(ask, number) for number in range(10 * _BEGIN_A_TURN)]
    begun = []
    loop = gevent.get_hub().loop
    keep_alive = loop.timer(20)
    keep_alive.start(lambda: None)  # a loop that nothing keeps alive ends; a worker's has its listeners
    while not all(asker.ready() for asker in askers):
        before = len(passed)
        gevent.get_hub().wait(
            gevent.get_hub().loop.check(ref=False)
        )  # runs once a turn, after the loop looked for events
        begun.append(len(passed) - before)
    assert passed == list(range(10 * _BEGIN_A_TURN))
    assert max(begun) <= 2 * _BEGIN_A_TURN, "what passes at once in a turn, and who waited for it"
    assert len(begun) >= 5
    gevent.joinall(askers, raise_error=True)
    keep_alive.stop()


def test_a_few_never_wait() -> None:
    """Without overload nobody is held up: whoever comes alone passes without a switch."""
    turnstile = _Turnstile()
    for _ in range(_BEGIN_A_TURN):
        turnstile.pass_through()
