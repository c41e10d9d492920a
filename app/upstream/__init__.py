"""The way to model servers: an HTTP/1.1 client with pooled connections.

Every step has a timeout, errors say exactly what went wrong, and nothing that is malformed is guessed at. It knows no
model.
"""
