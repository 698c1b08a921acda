"""What whoever has a GPU runs once: `make gpu-check`. It says what the trainer does on that card, as JSON."""
