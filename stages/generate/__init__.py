"""Stage 1: the student writes trajectories, with the exact entropy and log-prob of every token."""
