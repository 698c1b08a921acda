"""What several suites share, imported as `support` (pythonpath in pyproject.toml)."""
