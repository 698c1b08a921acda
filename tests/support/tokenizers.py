"""Small tokenizers of the kinds that students have."""

from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

UNK, BOS, EOS, TURN = range(4)
SPECIAL = ("<unk>", "<s>", "</s>", "<|im_end|>")
_SPACE = "\u2581"
_LETTERS = [chr(code) for code in range(33, 127)]


def _finish(tokenizer: Tokenizer, single: str | None, eos: str | None = "</s>") -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens(list(SPECIAL))
    if single is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[("<s>", BOS), ("</s>", EOS)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token=eos,
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def _bpe(tokens: list[str], **options: Any) -> Tokenizer:
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *tokens])}
    return Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", **options))


def byte_level(single: str | None = None, eos: str | None = "</s>") -> PreTrainedTokenizerFast:
    """As Qwen's and Llama 3's: a token a byte. `single` says what is added to a text, such as "<s> $A"."""
    tokenizer = _bpe(sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _finish(tokenizer, single, eos)


def metaspace(single: str | None = "<s> $A") -> PreTrainedTokenizerFast:
    """As SentencePiece's: a space is a token, and the decoder drops the one that begins a text."""
    tokenizer = _bpe([_SPACE, "\n", *_LETTERS])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    return _finish(tokenizer, single)


def byte_fallback(single: str | None = "<s> $A") -> PreTrainedTokenizerFast:
    """As Llama 2's and Mistral's: characters that are no token are written in bytes."""
    tokenizer = _bpe([*(f"<0x{byte:02X}>" for byte in range(256)), _SPACE, *_LETTERS], byte_fallback=True)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _finish(tokenizer, single)
