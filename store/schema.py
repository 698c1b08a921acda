"""Every table of a run, declared once. Docs and units travel in the Parquet field metadata and in the SQL views."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA_VERSION = 1
"""Raised when an old reader would misread a new table; a column added as nullable does not raise it."""

ArrowType = Literal[
    "bool", "int32", "int64", "float32", "float64", "string", "list<int32>", "list<float32>", "list<bool>"
]


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    name: str
    type: ArrowType
    doc: str
    unit: str = ""


@dataclass(frozen=True)
class TableSpec:
    """A table's name, its columns, the columns that identify a row, and the size of a row group."""

    name: str
    doc: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    rows_per_group: int

    @cached_property
    def schema(self) -> "pa.Schema":
        """The columns as Arrow has them. Made when it is asked for: what only looks at manifests needs no pyarrow."""
        import pyarrow as pa

        return pa.schema(
            [
                pa.field(
                    column.name,
                    _arrow_type(column.type),
                    metadata={"doc": column.doc} | ({"unit": column.unit} if column.unit else {}),
                )
                for column in self.columns
            ]
        )


def _arrow_type(name: str) -> "pa.DataType":
    import pyarrow as pa

    if name.startswith("list<"):
        return pa.list_(_arrow_type(name.removeprefix("list<").removesuffix(">")))
    return pa.type_for_alias(name)


_trajectory_id = Column("trajectory_id", "string", "stable hash of policy, prompt, sample index and seed")
_chunk_id = Column("chunk_id", "string", "stable hash of trajectory, start and end")
_round = Column("round", "int32", "round of the run, from 0")

TRAJECTORIES = TableSpec(
    "trajectories",
    "student responses, with the entropy and log-prob of every token",
    (
        _trajectory_id,
        _round,
        Column("prompt_id", "string", "hash of the question"),
        Column("sample_index", "int32", "which sample of this prompt"),
        Column("question", "string", "the last user message, the template filled"),
        Column("messages", "string", "JSON: the turns that the student answers, in OpenAI's form"),
        Column("tools", "string", "JSON: the tools that it may call; null for none"),
        Column("prompt_text", "string", "the prompt as the student read it, chat template included"),
        Column("prompt_ids", "list<int32>", "student tokens of the prompt"),
        Column("response_text", "string", "the response without its stop token"),
        Column("response_ids", "list<int32>", "student tokens of the response, stop token included"),
        Column("logprobs", "list<float32>", "log-prob of each response token at temperature 1", "nats"),
        Column("entropies", "list<float32>", "entropy over the full vocabulary at each response token (Eq. 6)", "nats"),
        Column("finish_reason", "string", "stop | length; none: a prompt that only the teacher answers (sft)"),
        Column("policy", "string", "hash of the weights that sampled it"),
        Column("entropy_source", "string", "engine, version, way (decode | rescore) and precision of the entropies"),
        Column("repetition", "float32", "share of the response that its longest repeated token sequence makes up"),
        Column("answer", "string", "the data set's reference answer or tests; null unless data.answer names a column"),
    ),
    ("trajectory_id",),
    8192,
)

CHUNKS = TableSpec(
    "chunks",
    "audited chunks: M windows of C tokens around the entropy peaks of a trajectory (Eq. 7); sft: one a prompt, empty",
    (
        _chunk_id,
        _trajectory_id,
        _round,
        Column("rank", "int32", "0 = highest score (select.strategy) of the trajectory"),
        Column("anchor", "int32", "token index of the entropy peak in the response", "tokens"),
        Column("start", "int32", "first token of the chunk in the response", "tokens"),
        Column("end", "int32", "one past the last token of the chunk", "tokens"),
        Column("anchor_entropy", "float32", "entropy at the anchor", "nats"),
        Column("prior", "float64", "the student's length-normalised probability of the chunk (Eq. 4)"),
        Column("prefix_text", "string", "the response before the chunk; the teacher continues it"),
        Column("chunk_text", "string", "what the student wrote"),
    ),
    ("chunk_id",),
    16384,
)

ROLLOUTS = TableSpec(
    "rollouts",
    "teacher continuations of a chunk's prefix, failed ones too",
    (
        _chunk_id,
        Column("rollout_index", "int32", "0 to N-1"),
        Column("teacher", "string", "id of the model that answered"),
        Column("text", "string", "the continuation; null unless status is ok or empty"),
        Column("status", "string", "ok | refused | filtered | empty | failed"),
        Column(
            "finish_reason",
            "string",
            "as the server said; thinking: ... of one that only thought, and the problem of a failed request",
        ),
        Column(
            "prompt_tokens",
            "int32",
            "this rollout's share of the request's prompt tokens; null: no bill",
            "teacher tokens",
        ),
        Column("cached_tokens", "int32", "of these, read from the server's cache", "teacher tokens"),
        Column("cache_write_tokens", "int32", "of these, written to the server's cache", "teacher tokens"),
        Column("completion_tokens", "int32", "this rollout's share of the completion tokens", "teacher tokens"),
        Column("cost_usd", "float64", "this rollout's share of the request's price", "USD"),
        Column("latency_s", "float32", "from sending the request to its last byte", "s"),
        Column("attempts", "int32", "requests sent until this one"),
        Column("continuation", "string", "completion | prefill | instruct"),
        Column("request_id", "string", "key of the request in ledger.sqlite"),
    ),
    ("chunk_id", "rollout_index"),
    16384,
)

SCORES = TableSpec(
    "scores",
    "one weight a chunk, under the settings that the shards were made with",
    (
        _chunk_id,
        Column("phi", "string", "similarity metric"),
        Column("unit", "string", "what the metric counts: word | char | digit | token"),
        Column("alpha", "float64", "prior strength"),
        Column("k_sem", "float64", "sum of the similarities (Eq. 3)"),
        Column("n", "int32", "usable rollouts"),
        Column("prior", "float64", "as in chunks (Eq. 4)"),
        Column("pi_freq", "float64", "k_sem / n"),
        Column("pi_teacher", "float64", "(k_sem + alpha prior) / (n + alpha) (Eq. 5)"),
        Column("phi_var", "float64", "sample variance of the similarities; null for n < 2"),
        Column("pi_low", "float64", "2.5 % quantile of the posterior whose mean is pi_teacher"),
        Column("pi_high", "float64", "97.5 % quantile of the posterior"),
    ),
    ("chunk_id",),
    65536,
)

ALL_SCORES = replace(
    SCORES,
    name="all_scores",
    doc="the weights of a chunk under every phi, unit and alpha that was scored",
    key=("chunk_id", "phi", "unit", "alpha"),
)

SHARDS = TableSpec(
    "shards",
    "training sequences: position i of every list is about token i of input_ids",
    (
        _trajectory_id,
        Column("input_ids", "list<int32>", "prompt and response"),
        Column(
            "loss_weight",
            "list<float32>",
            "pi_teacher on audited tokens, else 0; sft 1; grpo advantage; draft consensus",
        ),
        Column("audited", "list<bool>", "token lies in an audited chunk; draft: it was accepted"),
        Column("response_mask", "list<bool>", "token belongs to the response"),
        Column("behaviour_logprobs", "list<float32>", "log-prob when it was sampled; 0 on the prompt", "nats"),
        Column("chunk_id", "string", "what the teacher's text goes on from (sft, draft); null for the student's own"),
        Column("rollout_index", "int32", "which of the teacher's texts it is (sft, draft); null for the student's own"),
    ),
    ("trajectory_id", "chunk_id", "rollout_index"),
    8192,
)

REWARDS = TableSpec(
    "rewards",
    "what a grader says of each trajectory (grpo)",
    (
        _trajectory_id,
        _round,
        Column("grader", "string", "math_verify | dapo_regex | tests; task: the demo's own rule"),
        Column("reward", "float32", "1 right, 0 wrong"),
        Column("advantage", "float32", "the reward less the mean of the prompt's samples, over their deviation"),
        Column("reason", "string", "right | wrong | no_answer | timeout | memory | output | threads | error"),
        Column("extracted", "string", "the answer, or the program, as the grader read it"),
    ),
    ("trajectory_id",),
    16384,
)

DRAFTS = TableSpec(
    "drafts",
    "what the policy makes of each continuation of the teacher's, in a teacher-forced pass (draft)",
    (
        _chunk_id,
        Column("rollout_index", "int32", "as in rollouts"),
        Column("ids", "list<int32>", "the continuation in the student's tokens, with the stop token where it ended"),
        Column("logprobs", "list<float32>", "log-prob of each under the policy", "nats"),
        Column("entropies", "list<float32>", "entropy of the policy there", "nats"),
        Column("top_logprobs", "list<float32>", "log-prob of the likeliest token there", "nats"),
        Column("ranks", "list<int32>", "how many tokens are likelier"),
        Column("accepted", "int32", "tokens before the first that score.accept rejects", "tokens"),
        Column("reach", "float32", "geometric mean of the tokens' probabilities; null without a token"),
        Column("consensus", "float32", "mean similarity to the chunk's other continuations; 1 where there is none"),
    ),
    ("chunk_id", "rollout_index"),
    8192,
)

TRUTH = TableSpec(
    "truth",
    "a white-box teacher's probability of each chunk",
    (
        _chunk_id,
        Column("logprob", "float64", "log-probability of the chunk's text, given all before it", "nats"),
        Column("tokens", "int32", "tokens of the chunk", "teacher tokens"),
        Column("straddled", "bool", "the chunk begins inside what would be one token of the teacher"),
        Column("pi_true", "float64", "length-normalised probability: exp(logprob / tokens)"),
    ),
    ("chunk_id",),
    65536,
)

_interval_docs = {
    "mse_freq": "mean squared error of pi_freq against pi_true",
    "mse_bayes": "mean squared error of pi_teacher against pi_true",
    "corr_freq": "Pearson correlation of pi_freq and pi_true",
    "corr_bayes": "Pearson correlation of pi_teacher and pi_true",
    "mse_gain": "mse_freq - mse_bayes",
    "corr_gain": "corr_bayes - corr_freq",
}

ESTIMATOR_STUDY = TableSpec(
    "estimator",
    "the estimators beside the truth (Table 3); NaN where a correlation is not defined",
    (
        Column("phi", "string", "similarity metric"),
        Column("unit", "string", "what the metric counts"),
        Column("alpha", "float64", "prior strength"),
        Column("n", "int32", "rollouts a chunk"),
        *(
            Column(name + end, "float64", doc + suffix)
            for name, doc in _interval_docs.items()
            for end, suffix in (("", ""), ("_low", ", 2.5 % percentile"), ("_high", ", 97.5 % percentile"))
        ),
    ),
    ("phi", "n"),
    65536,
)

_alone = ", of all rounds, as if no arm had shared them"

ARM_STUDY = TableSpec(
    "arm_study",
    "one row for each arm, seed and number of rounds after which it was evaluated",
    (
        Column("arm", "string", "name in the study; 'student before' is the initial student"),
        Column("changes", "string", "JSON object: config keys in which the arm differs from the study's config.toml"),
        Column("folder", "string", "run directory, from the study's"),
        Column("seed", "int32", "added to every seed of the config"),
        Column("rounds", "int32", "rounds of training before the evaluation"),
        Column("benchmark", "string", "name of the benchmark"),
        Column("grader", "string", "math_verify | dapo_regex | tests; task: the demo's own rule"),
        Column("questions", "int32", "questions of the benchmark"),
        Column("samples", "int32", "responses to each question"),
        Column("pass_at_1", "float64", "share of right responses"),
        Column("response_tokens", "float64", "mean length of the responses", "student tokens"),
        Column("truncated", "float64", "share of responses that were cut off at the limit"),
        Column("repetition", "float64", "mean share of a response that its longest repeated sequence makes up"),
        Column("teacher_prompt_tokens", "int64", "prompt tokens of the rollouts" + _alone, "teacher tokens"),
        Column("teacher_completion_tokens", "int64", "completion tokens of the rollouts" + _alone, "teacher tokens"),
        Column("teacher_usd", "float64", "price of the rollouts" + _alone, "USD"),
        Column("billed_tokens", "int64", "tokens charged by the ledger of this run, all rounds", "teacher tokens"),
        Column("billed_usd", "float64", "charged by the ledger of this run, all rounds", "USD"),
        Column("trajectories", "int64", "trajectories that the student sampled, all rounds; 0 for sft"),
        Column("sequences", "int64", "training sequences, all rounds"),
        Column("train_steps", "int64", "optimizer steps, all rounds"),
        Column("similarity", "float64", "mean k_sem / n of the last round; null where nothing is compared"),
        Column("reward", "float64", "mean reward of the last round; null but for grpo"),
        Column("generate_s", "float64", "wall time, all rounds; 0 where all was borrowed", "s"),
        Column("audit_s", "float64", "wall time, all rounds", "s"),
        Column("score_s", "float64", "wall time, all rounds", "s"),
        Column("train_s", "float64", "wall time, all rounds", "s"),
    ),
    ("arm", "seed", "rounds"),
    65536,
)

_question_id = Column("question_id", "string", "the benchmark's id of the question, or a hash of its text")
_sample_index = Column("sample_index", "int32", "which sample of this question, from 0")

EVAL_RESPONSES = TableSpec(
    "eval_responses",
    "what a model answered to the questions of a benchmark",
    (
        _question_id,
        _sample_index,
        Column("question", "string", "the question, without the template; of a chat, one turn a line"),
        Column("prompt_text", "string", "the prompt as the model read it, chat template included"),
        Column("response_text", "string", "the response without its stop token"),
        Column("response_tokens", "int32", "length of the response, stop token included", "tokens"),
        Column("finish_reason", "string", "stop | length"),
        Column("repetition", "float32", "share of the response that its longest repeated token sequence makes up"),
        Column("policy", "string", "hash of the weights that sampled it"),
        Column("engine", "string", "engine, version and precision"),
    ),
    ("question_id", "sample_index"),
    4096,
)

EVAL_VERDICTS = TableSpec(
    "eval_verdicts",
    "what a grader says of each response",
    (
        _question_id,
        _sample_index,
        Column("grader", "string", "math_verify | dapo_regex | tests; task: the demo's own rule"),
        Column("correct", "bool", "the response is right"),
        Column("reason", "string", "right | wrong | no_answer | timeout | memory | output | threads | error"),
        Column("reference", "string", "what the response was compared with; null for tests"),
        Column("extracted", "string", "the answer, or the program, as the grader read it"),
        Column("detail", "string", "more about a failure"),
        Column("seconds", "float32", "time that grading took", "s"),
    ),
    ("question_id", "sample_index", "grader"),
    16384,
)

TABLES: dict[str, TableSpec] = {t.name: t for t in (TRAJECTORIES, CHUNKS, ROLLOUTS, SCORES, REWARDS, DRAFTS, SHARDS)}
