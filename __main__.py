"""`python -m omniopd` is the `omniopd` command."""

from .cli import main

main()
