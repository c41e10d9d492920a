"""The wire formats of clients and model servers: one module knows one of them, as a `ProtocolAdapter`.

An adapter says where its operations are found, what a request names, how another model is put in, and what an error
looks like. A new protocol is one new module here and one entry in `adapters.PROTOCOLS`.
"""
