"""Every table of a run, declared once. Docs and units travel in the Parquet field metadata and in the SQL views."""

from dataclasses import dataclass, replace

import pyarrow as pa

SCHEMA_VERSION = 1
"""Raised when an old reader would misread a new table; a column added as nullable does not raise it."""


@dataclass(frozen=True)
class TableSpec:
    """A table's name, its columns, the columns that identify a row, and the size of a row group."""

    name: str
    doc: str
    schema: pa.Schema
    key: tuple[str, ...]
    rows_per_group: int


def _column(name: str, type_: pa.DataType, doc: str, unit: str = "") -> pa.Field:
    metadata = {"doc": doc, "unit": unit} if unit else {"doc": doc}
    return pa.field(name, type_, metadata=metadata)


_i32, _i64, _f32, _f64, _str = pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.string()
_ids, _floats, _bools = pa.list_(pa.int32()), pa.list_(pa.float32()), pa.list_(pa.bool_())

_trajectory_id = _column("trajectory_id", _str, "stable hash of policy, prompt, sample index and seed")
_chunk_id = _column("chunk_id", _str, "stable hash of trajectory, start and end")
_round = _column("round", _i32, "round of the run, from 0")

TRAJECTORIES = TableSpec(
    "trajectories",
    "student responses, with the entropy and log-prob of every token",
    pa.schema(
        [
            _trajectory_id,
            _round,
            _column("prompt_id", _str, "hash of the question"),
            _column("sample_index", _i32, "which sample of this prompt"),
            _column("question", _str, "the user message: the template filled with the question"),
            _column("prompt_text", _str, "the prompt as the student read it, chat template included"),
            _column("prompt_ids", _ids, "student tokens of the prompt"),
            _column("response_text", _str, "the response without its stop token"),
            _column("response_ids", _ids, "student tokens of the response, stop token included"),
            _column("logprobs", _floats, "log-prob of each response token at temperature 1", "nats"),
            _column("entropies", _floats, "entropy over the full vocabulary at each response token (Eq. 6)", "nats"),
            _column("finish_reason", _str, "stop | length; none: a prompt that only the teacher answers (sft)"),
            _column("policy", _str, "hash of the weights that sampled it"),
            _column("entropy_source", _str, "engine, version, way (decode | rescore) and precision of the entropies"),
            _column("repetition", _f32, "share of the response that its longest repeated token sequence makes up"),
            _column("answer", _str, "the data set's reference answer or tests; null unless data.answer names a column"),
        ]
    ),
    ("trajectory_id",),
    8192,
)

CHUNKS = TableSpec(
    "chunks",
    "audited chunks: M windows of C tokens around the entropy peaks of a trajectory (Eq. 7); sft: one a prompt, empty",
    pa.schema(
        [
            _chunk_id,
            _trajectory_id,
            _round,
            _column("rank", _i32, "0 = highest score (select.strategy) of the trajectory"),
            _column("anchor", _i32, "token index of the entropy peak in the response", "tokens"),
            _column("start", _i32, "first token of the chunk in the response", "tokens"),
            _column("end", _i32, "one past the last token of the chunk", "tokens"),
            _column("anchor_entropy", _f32, "entropy at the anchor", "nats"),
            _column("prior", _f64, "the student's length-normalised probability of the chunk (Eq. 4)"),
            _column("prefix_text", _str, "the response before the chunk; the teacher continues it"),
            _column("chunk_text", _str, "what the student wrote"),
        ]
    ),
    ("chunk_id",),
    16384,
)

ROLLOUTS = TableSpec(
    "rollouts",
    "teacher continuations of a chunk's prefix, failed ones too",
    pa.schema(
        [
            _chunk_id,
            _column("rollout_index", _i32, "0 to N-1"),
            _column("teacher", _str, "id of the model that answered"),
            _column("text", _str, "the continuation; null unless status is ok or empty"),
            _column("status", _str, "ok | refused | filtered | empty | failed"),
            _column("finish_reason", _str, "as the server said"),
            _column(
                "prompt_tokens",
                _i32,
                "this rollout's share of the request's prompt tokens; null: no bill",
                "teacher tokens",
            ),
            _column("cached_tokens", _i32, "of these, read from the server's cache", "teacher tokens"),
            _column("cache_write_tokens", _i32, "of these, written to the server's cache", "teacher tokens"),
            _column("completion_tokens", _i32, "this rollout's share of the completion tokens", "teacher tokens"),
            _column("cost_usd", _f64, "this rollout's share of the request's price", "USD"),
            _column("latency_s", _f32, "from sending the request to its last byte", "s"),
            _column("attempts", _i32, "requests sent until this one"),
            _column("continuation", _str, "completion | prefill | instruct"),
            _column("request_id", _str, "key of the request in ledger.sqlite"),
        ]
    ),
    ("chunk_id", "rollout_index"),
    16384,
)

SCORES = TableSpec(
    "scores",
    "one weight a chunk, under the settings that the shards were made with",
    pa.schema(
        [
            _chunk_id,
            _column("phi", _str, "similarity metric"),
            _column("unit", _str, "what the metric counts: word | char | digit | token"),
            _column("alpha", _f64, "prior strength"),
            _column("k_sem", _f64, "sum of the similarities (Eq. 3)"),
            _column("n", _i32, "usable rollouts"),
            _column("prior", _f64, "as in chunks (Eq. 4)"),
            _column("pi_freq", _f64, "k_sem / n"),
            _column("pi_teacher", _f64, "(k_sem + alpha prior) / (n + alpha) (Eq. 5)"),
            _column("phi_var", _f64, "sample variance of the similarities; null for n < 2"),
            _column("pi_low", _f64, "2.5 % quantile of the posterior whose mean is pi_teacher"),
            _column("pi_high", _f64, "97.5 % quantile of the posterior"),
        ]
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
    pa.schema(
        [
            _trajectory_id,
            _column("input_ids", _ids, "prompt and response"),
            _column("loss_weight", _floats, "pi_teacher on audited tokens, else 0; sft: 1; grpo: the advantage"),
            _column("audited", _bools, "token lies in an audited chunk"),
            _column("response_mask", _bools, "token belongs to the response"),
            _column("behaviour_logprobs", _floats, "log-prob when it was sampled; 0 on the prompt", "nats"),
            _column("rollout_index", _i32, "which of the teacher's answers it is (sft); null for the student's own"),
        ]
    ),
    ("trajectory_id", "rollout_index"),
    8192,
)

REWARDS = TableSpec(
    "rewards",
    "what a grader says of each trajectory (grpo)",
    pa.schema(
        [
            _trajectory_id,
            _round,
            _column("grader", _str, "math_verify | dapo_regex | tests"),
            _column("reward", _f32, "1 right, 0 wrong"),
            _column("advantage", _f32, "the reward less the mean of the prompt's samples, over their deviation"),
            _column("reason", _str, "right | wrong | no_answer | timeout | memory | output | threads | error"),
            _column("extracted", _str, "the answer, or the program, as the grader read it"),
        ]
    ),
    ("trajectory_id",),
    16384,
)

TRUTH = TableSpec(
    "truth",
    "a white-box teacher's probability of each chunk",
    pa.schema(
        [
            _chunk_id,
            _column("logprob", _f64, "log-probability of the chunk's text, given all before it", "nats"),
            _column("tokens", _i32, "tokens of the chunk", "teacher tokens"),
            _column("straddled", pa.bool_(), "the chunk begins inside what would be one token of the teacher"),
            _column("pi_true", _f64, "length-normalised probability: exp(logprob / tokens)"),
        ]
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
    pa.schema(
        [
            _column("phi", _str, "similarity metric"),
            _column("unit", _str, "what the metric counts"),
            _column("alpha", _f64, "prior strength"),
            _column("n", _i32, "rollouts a chunk"),
            *(
                _column(name + end, _f64, doc + suffix)
                for name, doc in _interval_docs.items()
                for end, suffix in (("", ""), ("_low", ", 2.5 % percentile"), ("_high", ", 97.5 % percentile"))
            ),
        ]
    ),
    ("phi", "n"),
    65536,
)

_alone = ", of all rounds, as if no arm had shared them"

ARM_STUDY = TableSpec(
    "arm_study",
    "one row for each arm, seed and number of rounds after which it was evaluated",
    pa.schema(
        [
            _column("arm", _str, "name in the study; 'student before' is the initial student"),
            _column("changes", _str, "JSON object: config keys in which the arm differs from the study's config.toml"),
            _column("folder", _str, "run directory, from the study's"),
            _column("seed", _i32, "added to every seed of the config"),
            _column("rounds", _i32, "rounds of training before the evaluation"),
            _column("benchmark", _str, "name of the benchmark"),
            _column("grader", _str, "math_verify | dapo_regex | tests"),
            _column("questions", _i32, "questions of the benchmark"),
            _column("samples", _i32, "responses to each question"),
            _column("pass_at_1", _f64, "share of right responses"),
            _column("response_tokens", _f64, "mean length of the responses", "student tokens"),
            _column("truncated", _f64, "share of responses that were cut off at the limit"),
            _column("repetition", _f64, "mean share of a response that its longest repeated sequence makes up"),
            _column("teacher_prompt_tokens", _i64, "prompt tokens of the rollouts" + _alone, "teacher tokens"),
            _column("teacher_completion_tokens", _i64, "completion tokens of the rollouts" + _alone, "teacher tokens"),
            _column("teacher_usd", _f64, "price of the rollouts" + _alone, "USD"),
            _column("billed_tokens", _i64, "tokens charged by the ledger of this run, all rounds", "teacher tokens"),
            _column("billed_usd", _f64, "charged by the ledger of this run, all rounds", "USD"),
            _column("trajectories", _i64, "trajectories that the student sampled, all rounds; 0 for sft"),
            _column("sequences", _i64, "training sequences, all rounds"),
            _column("train_steps", _i64, "optimizer steps, all rounds"),
            _column("similarity", _f64, "mean k_sem / n of the last round; null where nothing is compared"),
            _column("reward", _f64, "mean reward of the last round; null but for grpo"),
            _column("generate_s", _f64, "wall time, all rounds; 0 where all was borrowed", "s"),
            _column("audit_s", _f64, "wall time, all rounds", "s"),
            _column("score_s", _f64, "wall time, all rounds", "s"),
            _column("train_s", _f64, "wall time, all rounds", "s"),
        ]
    ),
    ("arm", "seed", "rounds"),
    65536,
)

_question_id = _column("question_id", _str, "the benchmark's id of the question, or a hash of its text")
_sample_index = _column("sample_index", _i32, "which sample of this question, from 0")

EVAL_RESPONSES = TableSpec(
    "eval_responses",
    "what a model answered to the questions of a benchmark",
    pa.schema(
        [
            _question_id,
            _sample_index,
            _column("question", _str, "the question, without the template"),
            _column("prompt_text", _str, "the prompt as the model read it, chat template included"),
            _column("response_text", _str, "the response without its stop token"),
            _column("response_tokens", _i32, "length of the response, stop token included", "tokens"),
            _column("finish_reason", _str, "stop | length"),
            _column("repetition", _f32, "share of the response that its longest repeated token sequence makes up"),
            _column("policy", _str, "hash of the weights that sampled it"),
            _column("engine", _str, "engine, version and precision"),
        ]
    ),
    ("question_id", "sample_index"),
    4096,
)

EVAL_VERDICTS = TableSpec(
    "eval_verdicts",
    "what a grader says of each response",
    pa.schema(
        [
            _question_id,
            _sample_index,
            _column("grader", _str, "math_verify | dapo_regex | tests"),
            _column("correct", pa.bool_(), "the response is right"),
            _column("reason", _str, "right | wrong | no_answer | timeout | memory | output | threads | error"),
            _column("reference", _str, "what the response was held against; null for tests"),
            _column("extracted", _str, "the answer, or the program, as the grader read it"),
            _column("detail", _str, "more about a failure"),
            _column("seconds", _f32, "time that grading took", "s"),
        ]
    ),
    ("question_id", "sample_index", "grader"),
    16384,
)

TABLES: dict[str, TableSpec] = {t.name: t for t in (TRAJECTORIES, CHUNKS, ROLLOUTS, SCORES, REWARDS, SHARDS)}
