"""The embedded tasks: their problems, models and settings."""
