"""`python -m whet`: the same as the console script."""

from whet.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
