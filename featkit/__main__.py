"""`python -m featkit` is the `featkit` command."""

from featkit.cli.main import main

if __name__ == "__main__":
    main()
