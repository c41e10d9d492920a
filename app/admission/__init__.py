"""Who may enter, and in what order: the cap over all workers, the wait queue, and each model's own limit.

Every limit is exact over all worker processes at every moment. What a worker held comes back exactly once, also when
the worker is killed. This package knows no HTTP.
"""
