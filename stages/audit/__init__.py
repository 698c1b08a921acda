"""Stage 2: which chunks of a trajectory to audit, and what the teacher would have written there."""
