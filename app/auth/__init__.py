"""Who gets in. A request gets a caller, or an error that says what is accepted.

No secret is kept, logged or published: of API keys there are digests, of tokens public keys. It knows no HTTP beyond
the names of two headers.
"""
