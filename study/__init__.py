"""Many runs side by side: arms over seeds, in one table; and the estimator held against known probabilities."""
