"""φ as the cosine of sentence embeddings (Remark 4.5), by sentence-transformers: the extra `embedding`."""

import numpy as np
from numpy.typing import NDArray

from ...store.errors import InputError
from .units import Pairs


class Embedding:
    """max(0, cosine) of the embeddings of chunk and cut rollout: unrelated texts have a cosine about 0."""

    __name__ = "embedding"

    def __init__(self, model: str) -> None:
        """Load the model.

        Raises:
            InputError: sentence-transformers is not installed, or has no such model.
        """
        try:
            from sentence_transformers import SentenceTransformer
        except ModuleNotFoundError as error:
            raise InputError(
                'score.phi = "embedding" needs sentence-transformers.', "Install it: pip install 'omniopd[embedding]'."
            ) from error
        try:
            self._model = SentenceTransformer(model)
        except (OSError, ValueError) as error:  # what it raises for an unknown id and an unreachable hub
            raise InputError(
                f"{model!r} is no sentence-transformers model: {str(error).splitlines()[0].rstrip('.')}.",
                "Set score.embedding_model to a folder or a hub id.",
            ) from error

    def __call__(self, pairs: Pairs) -> NDArray[np.float64]:
        """φ [P]; each distinct text is embedded once."""
        chunks = [pairs.chunk_text(i) for i in range(len(pairs))]
        rollouts = [pairs.rollout_text(i) for i in range(len(pairs))]
        texts = sorted({*chunks, *rollouts})
        row = {text: i for i, text in enumerate(texts)}
        unit_DE = self._model.encode(texts, convert_to_numpy=True, normalize_embeddings=True).astype(np.float64)
        a_PE, b_PE = (unit_DE[[row[text] for text in side]] for side in (chunks, rollouts))
        return np.clip((a_PE * b_PE).sum(axis=1), 0.0, 1.0)
