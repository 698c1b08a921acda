"""What the algorithm does: which tokens are audited, how alike two texts are, when to stop asking, and what each
objective learns from.

Pure functions on arrays and texts: no files, no network, no clock.
"""
