"""The demo's teacher: a small model behind an OpenAI-compatible server, in a process of its own."""
