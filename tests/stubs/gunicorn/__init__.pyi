# The few names of gunicorn that the router uses, with their types: gunicorn has none of its own.

SERVER: str
