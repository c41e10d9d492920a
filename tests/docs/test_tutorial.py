"""docs/tutorial.md can be followed from its beginning to its end."""

from pathlib import Path

import pytest

from tests.docs.walkthrough import follow


@pytest.mark.slow
def test_tutorial_can_be_followed(tmp_path: Path) -> None:
    """Whoever does what it says sees what it shows."""
    follow("docs/tutorial.md", tmp_path)
