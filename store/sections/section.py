# pyright: strict
"""What the sections have in common."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def with_place(template: str) -> str:
    """A template of the user message, as it is.

    Raises:
        ValueError: it has no place for the question.
    """
    if "{question}" not in template:
        raise ValueError("template has no {question}: put it where the question's text belongs")
    return template
