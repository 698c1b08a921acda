"""Graders: from a response and its reference to a verdict."""
