"""Many runs side by side: arms over seeds, in one table; and the estimator compared with known probabilities."""
