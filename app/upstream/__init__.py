"""The way to model servers: an HTTP/1.1 client with pooled connections, timeouts for every step, and exact errors."""
