"""Stage 3: how much a chunk resembles what the teacher wrote, and the weight that follows."""
