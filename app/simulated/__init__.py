"""The model that needs no set-up: it speaks every protocol of a model server, in this process.

Its responses depend on nothing but the request: the same bytes get the same bytes. A call that can't be used gets a
response that says why.
"""
