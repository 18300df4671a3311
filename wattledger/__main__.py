"""`python -m wattledger` is the `wattledger` command."""

from wattledger.cli import main

if __name__ == "__main__":
    main()
