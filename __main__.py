"""`python -m omniopd` is the `omniopd` command."""

from .cli import main

if __name__ == "__main__":  # a worker of `study` imports this file under another name
    main()
