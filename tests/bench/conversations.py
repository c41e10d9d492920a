"""Conversations for the benches of `prefix`: several turns each, system prompts that many share, unequal lengths."""

import random
from collections.abc import Iterator
from typing import NamedTuple

WORDS = [
    f"{first}{last}" for first in ("ba", "ce", "di", "fo", "gu", "ly") for last in ("nt", "rm", "sk", "lp", "v", "xo")
]
SYSTEM_PROMPTS = 20
MOST_TURNS = 16
CARRY_ON = 0.8
"""How probable another turn is after each."""


class Message(NamedTuple):
    """One message of a chat."""

    role: str
    content: str


def text(dice: random.Random, size: int) -> str:
    """Returns words of about this many characters in all."""
    return " ".join(dice.choices(WORDS, k=max(1, size // 5)))


def system_prompts(seed: int) -> list[str]:
    """Returns the system prompts, 200 bytes to 8 KB long."""
    dice = random.Random(seed)
    return [text(dice, int(200 * 40 ** dice.random())) for _ in range(SYSTEM_PROMPTS)]


def conversation(dice: random.Random, prompts: list[str]) -> Iterator[list[Message]]:
    """Yields the messages of each turn: all that came before, and one more question.

    System prompts are as popular as words are, by Zipf's law. Every sixth conversation has none.
    """
    weights = [1 / rank for rank in range(1, len(prompts) + 1)]
    messages = [] if dice.random() < 1 / 6 else [Message("system", dice.choices(prompts, weights)[0])]
    for _ in range(MOST_TURNS):
        messages.append(Message("user", text(dice, int(40 * 40 ** dice.random()))))
        yield list(messages)
        messages.append(Message("assistant", text(dice, int(100 * 20 ** dice.random()))))
        if dice.random() > CARRY_ON:
            return
