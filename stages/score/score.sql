-- From rollouts to weights (Eq. 3-5), and from weighted spans to training sequences; which spans there are is said by the
-- objective (method/objectives/). The $names are keys of [score]; phi(chunk, rollout) is the similarity that similarity.py computes for whole columns, and
-- beta_quantile(p, a, b) that of a beta distribution.

-- name: similarities
-- One row a usable rollout. A failed, refused or filtered call is no answer, so it counts neither as a match nor as
-- a miss; an empty text is an answer: the teacher would have stopped. A view: the rows stream into the aggregate.
CREATE VIEW similarities AS
SELECT chunk_id, phi(chunk_text, text) AS phi
FROM rollouts JOIN chunks USING (chunk_id)
WHERE status IN ('ok', 'empty');

-- name: scores
WITH answered AS (
    SELECT
        chunk_id,
        fsum(phi) AS k_sem,                                                      -- Eq. 3
        count(phi) AS n,
        var_samp(phi) AS phi_var
    FROM similarities
    GROUP BY chunk_id
),
-- n is what the chunk really got: fewer than N where calls failed or the budget ended, and 0 where nothing came.
evidence AS (
    SELECT
        chunk_id, coalesce(k_sem, 0) AS k_sem, coalesce(n, 0) AS n, phi_var, prior,   -- prior: Eq. 4
        coalesce(k_sem, 0) + $alpha * prior AS matches,
        greatest(coalesce(n, 0) - coalesce(k_sem, 0), 0) + $alpha * (1 - prior) AS misses
    FROM chunks LEFT JOIN answered USING (chunk_id)
)
SELECT
    chunk_id,
    $phi AS phi,
    $unit AS unit,
    $alpha AS alpha,
    k_sem, n, prior,
    k_sem / nullif(n, 0) AS pi_freq,
    matches / nullif(n + $alpha, 0) AS pi_teacher,                               -- Eq. 5
    phi_var,
    -- Eq. 5 is the mean of Beta(matches, misses), the posterior of the Dirichlet-multinomial model of section 3.2.2.
    beta_quantile(0.025, matches, misses) AS pi_low,
    beta_quantile(0.975, matches, misses) AS pi_high
FROM evidence;

-- name: runs
-- Spans do not overlap, so a response is a sequence of gap, span, gap, span, ..., tail.
CREATE TABLE runs AS
WITH placed AS (
    SELECT trajectory_id, start, "end", weight, lag("end", 1, 0) OVER trajectory AS gap_start
    FROM spans
    WINDOW trajectory AS (PARTITION BY trajectory_id ORDER BY start)
)
SELECT
    trajectory_id,
    max("end") AS tail_start,
    list({gap: start - gap_start, length: "end" - start, weight: weight::FLOAT} ORDER BY start) AS runs
FROM placed
GROUP BY trajectory_id;

-- name: responses
-- All samples of a prompt follow each other.
SELECT trajectory_id, round, prompt_id, response_text, answer FROM trajectories ORDER BY prompt_id, trajectory_id;

-- name: trajectories
-- In an order that does not depend on how often `generate` was interrupted.
SELECT trajectory_id, prompt_ids, response_ids, logprobs FROM trajectories ORDER BY trajectory_id;

-- name: shards
-- A batch of these trajectories at a time: per-token lists are long, and DuckDB cannot spill what it is computing.
SELECT
    trajectory_id,
    prompt_ids || response_ids AS input_ids,
    filled(0::FLOAT, len(prompt_ids))
        || flatten(list_transform(coalesce(runs, []), lambda r: filled(0::FLOAT, r.gap) || filled(r.weight, r.length)))
        || filled(0::FLOAT, len(response_ids) - coalesce(tail_start, 0)) AS loss_weight,
    filled(false, len(prompt_ids))
        || flatten(list_transform(coalesce(runs, []), lambda r: filled(false, r.gap) || filled(true, r.length)))
        || filled(false, len(response_ids) - coalesce(tail_start, 0)) AS audited,
    filled(false, len(prompt_ids)) || filled(true, len(response_ids)) AS response_mask,
    filled(0::FLOAT, len(prompt_ids)) || logprobs AS behaviour_logprobs,
    NULL::VARCHAR AS chunk_id,
    NULL::INTEGER AS rollout_index
FROM batch LEFT JOIN runs USING (trajectory_id);
