"""The stages of a round. Each reads tables, writes tables, and knows nothing of the others."""
