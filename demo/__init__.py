"""The embedded demo: an arithmetic task, a teacher and a student of under 1 M parameters, and a teacher server."""
