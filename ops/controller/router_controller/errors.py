"""What can go wrong with a request to the API server, in one exception."""


class ApiFailure(Exception):
    """The API server returned an error, or (`status` 0) could not be reached or understood.

    The text is the API server's own. `retry_after_s` is its Retry-After, in seconds, or 0.
    """

    def __init__(self, status: int, reason: str, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s


class Conflict(Exception):
    """An object that would be made exists already and belongs to somebody else."""
