"""`omniopd report`: one HTML file about a run that opens from disk. figures -> charts, explorer -> page."""
