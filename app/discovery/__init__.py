"""Discovery: which endpoints a name in the DNS or a Kubernetes Service has, for as long as one worker leads.

Only a trustworthy response changes a set, or empties it; after any other the last one stays, and a metric and a line of
the log say so. It knows no model: it reads no routes, and whoever starts it publishes what it finds.
"""
