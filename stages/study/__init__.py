"""What the estimator is worth: against known probabilities (stage.py), and many runs side by side (arms.py)."""
