"""The model that needs no set-up: it speaks OpenAI's API, Anthropic's, and Open Inference Protocol v2.

Its responses depend on nothing but the request: the same bytes get the same bytes. A call that can't be used gets a
response that says why.
"""
