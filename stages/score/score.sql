-- From rollouts to weights (Eq. 3-5) to training sequences. The $names are keys of [score]; phi(chunk, rollout) is the
-- similarity of similarity.py.

-- name: similarities
-- One row a usable rollout. A failed, refused or filtered call is no answer, so it counts neither as a match nor as
-- a miss; an empty text is an answer: the teacher would have stopped.
CREATE TABLE similarities AS
SELECT chunk_id, phi(chunk_text, text) AS phi
FROM rollouts JOIN chunks USING (chunk_id)
WHERE status IN ('ok', 'empty');

-- name: scores
SELECT
    chunk_id,
    $phi AS phi,
    $unit AS unit,
    coalesce(sum(s.phi), 0) AS k_sem,                                            -- Eq. 3
    count(s.phi) AS n,
    any_value(prior) AS prior,                                                   -- Eq. 4
    sum(s.phi) / count(s.phi) AS pi_freq,
    (coalesce(sum(s.phi), 0) + $alpha * any_value(prior))
        / nullif(count(s.phi) + $alpha, 0) AS pi_teacher,                        -- Eq. 5
    var_samp(s.phi) AS phi_var
FROM chunks LEFT JOIN similarities AS s USING (chunk_id)
GROUP BY chunk_id;

-- name: shards
WITH audited AS (
    SELECT
        trajectory_id, start, "end", lag("end", 1, 0) OVER trajectory AS gap_start,
        CASE WHEN $weights = 'constant' THEN 1 ELSE pi_teacher END AS weight
    FROM chunks JOIN scores USING (chunk_id)
    WHERE n >= $min_rollouts OR $weights = 'constant'
    WINDOW trajectory AS (PARTITION BY trajectory_id ORDER BY start)
),
-- Chunks do not overlap, so a response is a sequence of gap, chunk, gap, chunk, ..., tail.
runs AS (
    SELECT
        trajectory_id,
        max("end") AS tail_start,
        list({gap: start - gap_start, length: "end" - start, weight: weight::FLOAT} ORDER BY start) AS runs
    FROM audited
    GROUP BY trajectory_id
)
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
    filled(0::FLOAT, len(prompt_ids)) || logprobs AS behaviour_logprobs
FROM trajectories LEFT JOIN runs USING (trajectory_id)
ORDER BY trajectory_id;
