"""From bytes to WSGI and back: the gunicorn worker, its connections, its drain, and gunicorn's hooks.

Every accepted request is answered or its connection is cut; no client can hold a worker or a permit by being slow. This
package knows no model.
"""
