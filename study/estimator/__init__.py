"""What the estimator is worth on a run: against the teacher's own probabilities (Table 3), and which alpha is best
(Theorem 4.1c)."""
