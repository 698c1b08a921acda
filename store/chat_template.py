# pyright: strict
"""A student's chat template, applied."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from .errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render_chat(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
    """A conversation as the student reads it, special tokens written out.

    Args:
        options: For `apply_chat_template`: add_generation_prompt, tools, and switches of the template itself, which
            templates that do not know them ignore.

    Raises:
        InputError: the template refuses the conversation, or has a mistake; or there are several, and none is default.
    """
    from jinja2 import TemplateError

    template: Any = tokenizer
    try:
        return cast(str, template.apply_chat_template(list(messages), tokenize=False, **options))
    # TypeError: an expression of the template met a value of another kind than it expects. ValueError: transformers
    # finds named templates (of `additional_chat_templates`, say), and no default among them.
    except (TemplateError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(
            f"The student's chat template refuses the conversation: {reason}.",
            'Give it what it asks for, or set data.chat_template = "off" and put the whole prompt into data.template.',
        ) from error
