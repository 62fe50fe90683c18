"""Alias of `featkit.hloc` under its former name: `register`, and `python -m featkit.integrations.hloc`."""

import sys

from featkit.hloc import Registered, main, register, run_command

__all__ = ["Registered", "main", "register", "run_command"]

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
