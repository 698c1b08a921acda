# pyright: strict
def loss_bytes(tokens: int, vocabulary: int, hidden: int, *, rows: int, parameter_bytes: int) -> int:
    return 4 * (3 * rows * vocabulary + vocabulary * hidden + tokens * hidden)
