"""`python -m app` is the command line `inference-router`."""

from app.cli.main import main

if __name__ == "__main__":
    main()
