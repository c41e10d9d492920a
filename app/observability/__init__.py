"""Logs and metrics: what happened, told to people and to Prometheus.

Counters outlive the workers that wrote them, and any worker returns the metrics of all. No secret and no value that a
client chose becomes a label. This package knows none of those that use it: what it shows is passed in.
"""
