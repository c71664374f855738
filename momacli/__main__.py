"""`python -m momacli` is `moma`; torchrun starts it this way."""

from momacli.cli.main import main

if __name__ == "__main__":
    main()
