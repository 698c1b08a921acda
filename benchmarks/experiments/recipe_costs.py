"""What each recipe would cost: the table of docs/recipes.md.

    python benchmarks/experiments/recipe_costs.py

It computes from the paper's lengths and the assumptions below what `omniopd plan` predicts for all rounds of a recipe,
and what follows for GPUs. Nothing is run, and nothing here was measured.
"""

from dataclasses import dataclass

from omniopd.method.objectives.registry import objective_of
from omniopd.stages.audit.forecast import Forecast
from omniopd.stages.audit.teachers.anthropic import AnthropicTeacher
from omniopd.stages.audit.teachers.gemini import GeminiTeacher
from omniopd.store.config import Config
from omniopd.store.recipes import recipe, recipe_rows
from omniopd.view.plan import forecasts, predict

PROMPTS = {"open-r1/DAPO-Math-17k-Processed": 17_398, "PRIME-RL/Eurus-2-RL-Data": 26_758}
"""Rows, as the data sets' cards count them."""

PROMPT, RESPONSE, ANSWER = 200, 6_340, 8_000
"""Mean tokens of DAPO-Math-17K's prompts, the student's responses and a teacher's answers (paper, section 9). It has
no figures for programming, nor for a teacher that does not think; these stand for all."""

PARAMETERS = {
    "Qwen/Qwen3-1.7B": 1.72e9,
    "Qwen/Qwen3-4B": 4.02e9,
    "Qwen/Qwen3-32B": 32.8e9,
    "Qwen/Qwen3-30B-A3B-Instruct-2507": 3.3e9,  # those that are active for a token
}

PEAK = 989e12
"""FLOP/s of an H100 SXM in bfloat16, dense, as NVIDIA states it."""

READING, DECODING = 0.29, 0.05
"""Assumed shares of the peak: of passes over whole sequences, and of decoding, which waits for memory."""


@dataclass(frozen=True)
class Cost:
    """What all rounds of a recipe need."""

    name: str
    asked: list[Forecast]
    """Of one round, live and in batches; empty where no teacher is asked."""
    rounds: int
    generated: int
    trained: int
    """Student tokens."""
    generate_h: float
    train_h: float
    teacher_h: float
    """GPU hours; of the teacher, where its weights are here."""


def cost(name: str) -> Cost:
    """Price a recipe."""
    config = Config.model_validate(recipe(name))
    prompts = min(PROMPTS[config.data.prompts], config.data.per_round or PROMPTS[config.data.prompts])
    objective = objective_of(config)
    length = ANSWER if objective.asks == "answers" else RESPONSE
    plan = predict(config, prompts, PROMPT, length)
    rounds, student = config.run.rounds, plan.student
    asked = [one for one in forecasts(plan, config) if one.continuation in ("answer", _continuation(config))]
    size = PARAMETERS[config.student.model]
    generate_h = _hours(2 * size * student.generated, DECODING)
    # Forwards, backwards (twice that), and forwards again where activations are recomputed.
    passes = 2 + 4 + (2 if config.train.recompute else 0)
    frozen = 2 * size if student.frozen == "the initial student" else 0
    train_h = _hours((passes * size + frozen) * student.trained, READING)
    teacher_h = 0.0
    if objective.frozen == "teacher":
        teacher_h = _hours(2 * PARAMETERS[config.train.teacher] * student.trained, READING)
    elif asked and config.teacher.model in PARAMETERS:
        live, teacher = asked[0], 2 * PARAMETERS[config.teacher.model]
        teacher_h = _hours(teacher * (live.prompt_tokens - live.cached_tokens), READING)
        teacher_h += _hours(teacher * live.completion_tokens, DECODING)
    return Cost(
        name, asked, rounds, rounds * student.generated, rounds * student.trained,
        rounds * generate_h, rounds * train_h, rounds * teacher_h,
    )  # fmt: skip


def _continuation(config: Config) -> str:
    """What continuation = "auto" picks."""
    if config.teacher.kind == "anthropic":
        return AnthropicTeacher(config.teacher).continuation
    if config.teacher.kind == "gemini":
        return GeminiTeacher(config.teacher).continuation
    return "completion"


def _hours(flop: float, share: float) -> float:
    return flop / (share * PEAK) / 3600


def _million(tokens: float) -> str:
    return f"{tokens / 1e6:,.0f} M" if tokens else "-"


def _row(cost: Cost) -> str:
    read = written = live = batch = "-"
    if cost.asked:
        one, many = cost.asked
        read, written = _million(cost.rounds * one.prompt_tokens), _million(cost.rounds * one.completion_tokens)
        if one.usd:
            with_cache, without = round(cost.rounds * one.usd), round(cost.rounds * one.usd_uncached)
            live = f"{with_cache:,}" if with_cache == without else f"{with_cache:,} to {without:,}"
            batch = f"{cost.rounds * many.usd:,.0f}"
    hours = [f"{hour:,.1f}" if hour else "-" for hour in (cost.generate_h, cost.train_h, cost.teacher_h)]
    cells = [
        f"`{cost.name}`", read, written, live, batch, _million(cost.generated), _million(cost.trained), *hours,
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    print(
        "| recipe | teacher reads | teacher writes | $ live | $ batch | student writes | trained on | GPU h generate"
        " | GPU h train | GPU h teacher |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    )
    for name in recipe_rows():
        if name not in ("dapo-math-17k", "prime-code"):
            print(_row(cost(name)))
    print()
    for model, size in PARAMETERS.items():
        print(f"{model}: decodes {DECODING * PEAK / (2 * size):,.0f} tokens/s a GPU by assumption")


if __name__ == "__main__":
    main()
