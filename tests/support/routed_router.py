"""A router in the test's own process, with a routes file that changes while it runs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.local_router import LocalRouter


class RoutedRouter(LocalRouter):
    """A router of these models."""

    def __init__(self, folder: Path, *models: Mapping[str, Any], **environ: str) -> None:
        self.file = folder / "routes.json"
        self.write(*models)
        super().__init__(folder, ROUTES_FILE=str(self.file), **environ)
        self.registry, self.publisher = self.router.models.registry, self.router.models.publisher

    def write(self, *models: Mapping[str, Any]) -> None:
        """Write these models into the file."""
        self.file.write_text(json.dumps({"models": models}))

    def publish(self, *models: Mapping[str, Any]) -> None:
        """Have these models from now on."""
        self.write(*models)
        self.publisher.republish()

    def found(self, key: str, /, *urls: str) -> tuple[str, ...]:
        """Publish that these URLs were found at a source. Returns those that are current."""
        return self.publisher.publish_found({key: urls})[key]
