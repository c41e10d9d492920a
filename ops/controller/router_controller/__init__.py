"""The controller of InferenceServices: each becomes a router with its Service, autoscaler and routes.

`plan` is pure: a resource in, objects out. Everything that is written is compared with what was watched before, so a
cluster at rest is never written to. Nothing is kept but in memory: what the API server has is the whole state.
"""
