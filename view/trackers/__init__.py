"""What a run measures, told to Weights & Biases and MLflow."""
