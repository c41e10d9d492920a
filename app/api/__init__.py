"""The HTTP endpoints, a module each, and the one place where errors become problem documents."""
