"""The dialects of teacher API, one file each. Which there are: registry.py."""
