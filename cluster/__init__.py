"""`generate` and `train` on the machines of a Ray cluster: docs/cluster.md."""
