"""The only place that touches a run's disk format: config, schemas, tables, ledger. Imports nothing else of ours."""
