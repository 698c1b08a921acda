"""`omniopd eval`: a model answers a benchmark several times; graders say what is right, estimators how sure that is."""
