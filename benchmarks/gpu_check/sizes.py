"""Shapes of known models, and how large a check is."""

from dataclasses import dataclass, field

from omniopd.store.architecture import Architecture

SHAPES = {
    # layers, hidden, feed-forward, heads, key-value groups, head size, vocabulary
    "0.6b": (28, 1024, 3072, 16, 8, 128, 151_936),
    "1.7b": (28, 2048, 6144, 16, 8, 128, 151_936),
    "4b": (36, 2560, 9728, 32, 8, 128, 151_936),
    "tiny": (2, 64, 96, 4, 2, 16, 300),
}
"""Qwen3's, by their names; and one to try the check itself."""


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    shape: str = "1.7b"
    lora_shape: str = "4b"
    checkpoint_shape: str = "0.6b"
    lengths: tuple[int, ...] = (4096, 8192, 20480)
    vocabulary: int = 151_936
    hidden: int = 2560
    rows: int = 8192
    """Rows of the loss."""
    chunks: tuple[int, ...] = (256, 1024, 2048, 4096)
    heads: tuple[int, int, int] = field(default=(16, 8, 128))

    @classmethod
    def tiny(cls) -> "Sizes":
        """For a CPU."""
        return cls("tiny", "tiny", "tiny", (64, 128), 300, 32, 96, (16, 64), (4, 2, 16))


def architecture(shape: str) -> Architecture:
    """A Qwen3 of that shape, tied as its small ones are."""
    layers, hidden, ffn, heads, groups, head_dim, vocabulary = SHAPES[shape]
    return Architecture(
        model_type="qwen3", layers=layers, hidden=hidden, ffn=ffn, heads=heads, groups=groups, head_dim=head_dim,
        vocabulary=vocabulary, positions=40_960, tied=True, norm_eps=1e-6, rope_base=1e6,
    )  # fmt: skip
