"""The similarity that decides, when the number of rollouts is adaptive."""

from collections.abc import Sequence

import pyarrow as pa

from ...store.config import Config
from .enough import Adaptive, Enough, Fixed


def find_enough(config: Config) -> Enough:
    """What the config says about the number of rollouts.

    Raises:
        InputError: the similarity that decides cannot be used.
    """
    teacher = config.teacher
    if teacher.rollouts != "adaptive":
        return Fixed(teacher.rollouts)
    # Brings in what only adaptive rollouts need.
    from ..similarity.metrics import find_metric, make_encoder, similarities

    metric, encoder = find_metric(config.score), make_encoder(config)

    def similar(chunks: Sequence[str], texts: Sequence[str]) -> list[float | None]:
        columns = (pa.chunked_array([pa.array(column, pa.string())]) for column in (chunks, texts))
        return similarities(metric, encoder, *columns).to_pylist()

    return Adaptive(teacher.max_rollouts, teacher.precision, config.score.alpha, similar)
