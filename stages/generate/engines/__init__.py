"""The engines: transformers, vLLM, and a second, teacher-forced pass for either."""
