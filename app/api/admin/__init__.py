"""What the admin listener serves: the admin API, the records of requests, and the status page."""
