"""A model's name becomes a response: version, endpoint, attempt, and retry where it is safe.

All workers see the same routes, loads and failures. Routes change in every worker at one moment, and no request is lost
by a change.
"""
