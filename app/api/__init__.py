"""HTTP in and out; the only package that imports Falcon.

An inference request takes one visible path, `Dispatcher.handle`. Every exchange gives back what it holds exactly once.
Errors become responses in one place, `error_responses.py`.
"""
