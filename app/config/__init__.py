"""Configuration: text becomes frozen, validated records, or one error that names the place and what is allowed there.

Settings come from an environment mapping, and routes from a TOML, YAML or JSON file. No message contains a password.
Nothing here reads `os.environ`: the caller hands the environment in.
"""
