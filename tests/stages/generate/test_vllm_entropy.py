"""The parts of the hook that need no vLLM."""

import pytest
import torch

from omniopd.stages.generate.engines.vllm_entropy import RewindableGenerator, entropies


def test_entropy_of_log_probs_is_exact_and_finite():
    logits = torch.randn(600, 50, dtype=torch.float64) * 4
    logits[0, 1:] = float("-inf")
    logits[1, 25:] = float("-inf")
    exact = torch.special.entr(logits.softmax(-1)).sum(-1)
    found = entropies(logits.log_softmax(-1).float())
    assert (found - exact).abs().max() < 1e-5
    assert found[0] == 0


def test_the_last_draw_can_be_taken_back():
    plain, rewindable = torch.Generator().manual_seed(7), RewindableGenerator()
    rewindable.manual_seed(7)
    kept = [torch.empty(3).exponential_(generator=plain) for _ in range(3)]
    seen = []
    for discards in (2, 0, 1):
        for _ in range(discards):
            rewindable.remember()
            torch.empty(3).exponential_(generator=rewindable)
            rewindable.set_offset(rewindable.get_offset() - 4)
        rewindable.remember()
        seen.append(torch.empty(3).exponential_(generator=rewindable))
    assert torch.equal(torch.stack(seen), torch.stack(kept))


def test_it_is_a_generator_for_those_who_ask():
    assert isinstance(RewindableGenerator(), torch.Generator)
    with pytest.raises(AssertionError):
        RewindableGenerator().set_offset(3)
