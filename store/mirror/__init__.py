"""A run directory's copy elsewhere: `[run] mirror`, and `omniopd pull` (docs/mirror.md)."""
