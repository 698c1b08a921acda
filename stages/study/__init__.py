"""How good the estimator is: against a teacher whose probabilities are known, and which alpha suits a run's data."""
