"""The student's tokenizer, for showing tokens: without its model, without transformers, without a download."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..store.config import Config
from ..store.layout import RunDir
from ..store.tokens import Decode, decoder_after


def find_decoder(run: RunDir, config: Config) -> Decode | None:
    """What turns token ids into text; None where no tokenizer.json of the student is on this machine."""
    path = next((path for path in _candidates(run, config) if path.is_file()), None)
    if path is None:
        return None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    special = (id_ for id_, token in tokenizer.get_added_tokens_decoder().items() if token.special)
    behind = decoder_after(lambda ids: tokenizer.decode(ids, skip_special_tokens=False), min(special, default=0))
    single: dict[int, str] = {}

    def decode(ids: Sequence[int]) -> str:
        if len(ids) != 1:
            return behind(ids)
        if ids[0] not in single:
            single[ids[0]] = behind(ids)
        return single[ids[0]]

    return decode


def _candidates(run: RunDir, config: Config) -> Iterator[Path]:
    model = config.student.model
    yield Path(model) / "tokenizer.json"
    yield from (round_.policy / "tokenizer.json" for round_ in run.rounds())
    if model.count("/") == 1:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(model, "tokenizer.json")
        if isinstance(cached, str):
            yield Path(cached)
