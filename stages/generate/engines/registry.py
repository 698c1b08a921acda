"""Which engine a config means."""

import importlib.util
from collections.abc import Callable

from ....method.objectives.registry import objective_of
from ....store.config import Config
from ..engine import Engine
from ..prompts import say_once


def make_engine(
    folder: str,
    config: Config,
    longest_prompt: int,
    *,
    entropies: bool = True,
    say: Callable[[str], None] = say_once,
) -> Engine:
    """The engine that the config names, with the model of `folder` loaded.

    Args:
        longest_prompt: Tokens of the longest prompt that it will be given.
        entropies: False for a caller that wants texts alone: log-probs and entropies may then be NaN, and no second
            pass computes them.
        say: Hears of an engine whose entropies cannot be used.

    Raises:
        InputError: the engine is not installed, or cannot load the model.
    """
    # Each engine brings in seconds of imports.
    from ...likelihood import Student, precision_of
    from .rescore import Rescored

    rescore = entropies and _rescored(config)
    if _name(config) == "transformers":
        from .transformers_engine import TransformersEngine

        engine = TransformersEngine(folder, config.student.dtype, config.generate.batch_size)
        return Rescored(engine, Student(folder, precision_of(config))) if rescore else engine
    from .vllm_engine import VllmEngine

    if not entropies:
        return VllmEngine(folder, config, longest_prompt, decode_entropies=False)
    if not rescore:
        engine = VllmEngine(folder, config, longest_prompt, decode_entropies=True)
        problem = engine.check_entropies()
        if not problem:
            return engine
        engine.close()
        say(f"{problem}: falling back to generate.entropy = rescore")
    engine = VllmEngine(folder, config, longest_prompt, decode_entropies=False, alone=False)
    return Rescored(engine, Student(folder, precision_of(config)))


def _rescored(config: Config) -> bool:
    entropy = config.generate.entropy
    return entropy == "rescore" or (entropy == "auto" and objective_of(config).rescored)


def _name(config: Config) -> str:
    if config.student.engine != "auto":
        return config.student.engine
    return "vllm" if importlib.util.find_spec("vllm") else "transformers"
