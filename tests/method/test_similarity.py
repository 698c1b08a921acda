"""Every φ beside a reference package on 10,000 random and adversarial pairs, and what all of them promise."""

import random
from importlib.metadata import EntryPoint, EntryPoints

import Levenshtein
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU

from omniopd.method.similarity.metrics import METRICS, find_metric, similarities
from omniopd.method.similarity.units import CharUnits, WordUnits, pairs_of
from omniopd.store.errors import InputError
from omniopd.store.sections import METRIC_NAMES, ScoreConfig

SCRIPTS = [
    ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"],
    ["数学", "解", "方程", "，", "因此", "。"],
    [r"\frac", "{", "x", "^", "2", "}", "$", "=", "\\", "+"],
    ["да", "нет", "число", "ответ"],
    ["مرحبا", "العدد", "٤٢"],
    ["שלום", "עולם"],
    ["नमस्ते", "संख्या"],
    ["한국어", "숫자"],
    ["ไทย", "ตัวเลข"],
    ["naïve", "café", "cafe\u0301", "Ångström", "\u212b"],
    ["🙂", "👩\u200d🔬", "🇫🇷", "👍🏽"],
    ["7", "12", "3.14", "x_1", "∫", "≤", "\u00a0", "\u3000", "\n", "\t"],
]


def random_pairs(count, seed=0):
    """Pairs of every script and length; about half share a part of their words."""
    rng = random.Random(seed)
    for _ in range(count):
        words = rng.choice(SCRIPTS) if rng.random() < 0.7 else [w for script in SCRIPTS for w in script]
        # Few distinct words: many repeats, which is where counts are clipped.
        words = rng.sample(words, min(len(words), rng.choice([1, 2, 5, 50])))
        chunk = [rng.choice(words) for _ in range(rng.choice([0, 1, 2, 5, 20, 60, 130]))]
        rollout = [w if rng.random() < 0.6 else rng.choice(words) for w in chunk]
        rollout = rollout[: rng.randrange(len(rollout) + 1)] if rng.random() < 0.3 else rollout
        rollout += [rng.choice(words) for _ in range(rng.randrange(8))]
        join = rng.choice([" ", " ", "", "  \n"])
        yield join.join(chunk), join.join(rollout)


def adversarial_pairs():
    long = "a b " * 5000
    yield from [("", ""), ("", "a"), ("a", ""), ("a", "a"), ("a", "b"), ("a a a a", "a"), ("a", "a a a a")]
    yield from [("a b a b a b", "b a b a b a"), ("a a a b", "a b b b"), (" \n\t", "a"), ("\0", "\0"), ("\0 a", "a \0")]
    yield from [(long, long), (long, long[:10_000]), (long, "b a " * 5000), ("x" * 20_000, "x" * 19_999 + "y")]
    yield from [
        ("".join(chr(0x4E00 + i) for i in range(20_000)), "".join(chr(0x4E00 + i) for i in range(19_999, -1, -1)))
    ]
    yield from [
        (" ".join(map(str, range(4000))), " ".join(map(str, range(2000, 6000)))),
        ("𝒳" * 50, "𝒳" * 25 + "𝒴" * 25),
    ]
    yield from [("12345678 123456789", "123456789 12345678"), ("é", "e\u0301"), ("a\u0300\u0301", "à\u0301")]


ALL_PAIRS = [*adversarial_pairs(), *random_pairs(30_000)]
PAIRS = ALL_PAIRS[:10_000]


def column(values):
    return pa.chunked_array([pa.array(values, pa.string())])


def phi(metric, pairs, encoder=None):
    chunks, rollouts = column([a for a, _ in pairs]), column([b for _, b in pairs])
    return similarities(metric, encoder or WordUnits(), chunks, rollouts).to_pylist()


class Spaces:
    """What rouge_score is to split at: the units as the product sees them, one code point each, joined by spaces."""

    def tokenize(self, text):
        return text.split(" ") if text else []


def reference(name):
    if name == "edit":
        return lambda a, b: 1 - Levenshtein.distance(a, b) / max(len(a), len(b))
    if name.startswith("rouge"):
        scorer = RougeScorer([name], tokenizer=Spaces())
        return lambda a, b: scorer.score(" ".join(a), " ".join(b))[name].fmeasure
    if name.startswith("bleu"):
        bleu = BLEU(
            max_ngram_order=int(name[-1]), smooth_method="none", effective_order=True, tokenize="none", force=True
        )
        return lambda a, b: bleu.sentence_score(" ".join(a), [" ".join(b)]).score / 100 if b else 0.0
    if name == "jaccard":
        return lambda a, b: len(set(a) & set(b)) / len(set(a) | set(b))
    return lambda a, b: float(a == b)


@pytest.mark.parametrize("encoder", [WordUnits(), CharUnits()], ids=["word", "char"])
@pytest.mark.parametrize("name", METRICS)
def test_it_agrees_with_the_reference_package_to_the_ninth_digit(name, encoder):
    # rouge_score's LCS is quadratic Python: the longest pairs would take it hours.
    longest = 20_001 if name != "rougeL" else 1000 if isinstance(encoder, WordUnits) else 100
    pairs = [pair for pair in ALL_PAIRS if len(pair[0]) < longest][:10_000]
    got = phi(METRICS[name], pairs, encoder)
    units = pairs_of(*(pa.array(side) for side in zip(*pairs, strict=True)), encoder)
    of = reference(name)
    expected = [
        None if not a else of(letters(a), letters(b)) for a, b in zip(units.chunks, units.rollouts, strict=True)
    ]
    assert [value is None for value in got] == [value is None for value in expected]
    worst = max(abs(x - y) for x, y in zip(got, expected, strict=True) if x is not None)
    assert worst < 1e-9
    print(f"{name}: {len(pairs)} pairs, largest difference {worst:.1e}")


def test_the_longest_common_subsequence_of_twenty_thousand_characters():
    forth = "".join(chr(0x4E00 + i) for i in range(20_000))
    pairs = [(forth, forth), (forth, forth[::-1]), (forth, forth[:5_000]), (forth, forth[10_000:] + forth[:10_000])]
    assert phi(METRICS["rougeL"], pairs, CharUnits()) == pytest.approx([1.0, 1 / 20_000, 0.4, 0.5])


def letters(units):
    """The same sequence in code points that no package takes for a space."""
    return "".join(chr(0x20000 + ord(unit)) for unit in units)


def test_longer_than_its_chunk_a_rollout_is_cut_so_the_brevity_penalty_needs_uncut_pairs():
    """The formula holds for any pair, so it is held against the package on pairs that were not cut as well."""
    pairs = pairs_of(pa.array(["a b", "a b c"]), pa.array(["a b c d", "a b x"]), WordUnits())
    object.__setattr__(pairs, "rollout_length_P", np.array([4, 3]))
    for name in ("bleu1", "bleu2"):
        expected = [reference(name)("ab", "abcd"), reference(name)("abc", "abx")]
        assert METRICS[name](pairs) == pytest.approx(expected, abs=1e-12)


texts = st.text(st.sampled_from("ab é数🙂\n,.+1_"), max_size=30) | st.text(max_size=20)


@given(texts, texts, st.sampled_from(sorted(METRICS)), st.sampled_from([WordUnits(), CharUnits()]))
def test_it_lies_between_zero_and_one_and_is_one_for_equal_texts(a, b, name, encoder):
    assert all(value is None or 0 <= value <= 1 for value in phi(METRICS[name], [(a, b)], encoder))
    assert phi(METRICS[name], [(a + "x", a + "x")], encoder) == [1.0]


@pytest.mark.parametrize("name", METRICS)
def test_a_longer_rollout_is_cut_an_empty_one_is_a_miss_and_an_empty_chunk_is_not_judged(name):
    assert phi(METRICS[name], [("a b", "a b c d"), ("a", " "), (" \n", "a"), ("", "")]) == [1.0, 0.0, None, None]


@pytest.mark.parametrize("name", METRICS)
def test_a_pair_does_not_depend_on_the_batch_it_is_in(name, monkeypatch):
    pairs = [pair for pair in PAIRS if len(pair[0]) < 400][:600]
    together = phi(METRICS[name], pairs)
    monkeypatch.setattr("omniopd.method.similarity.metrics._SLICE_BYTES", 1000)
    assert phi(METRICS[name], pairs) == together


def test_no_rows_are_no_answers():
    assert phi(METRICS["edit"], []) == []
    assert phi(METRICS["bleu2"], [("", ""), (None, None)]) == [None, None]


class Group(EntryPoints):
    pass


def shared_first_letter(pairs):
    return np.array([float(a[:1] == b[:1]) for a, b in zip(pairs.chunks, pairs.rollouts, strict=True)])


def twice_too_large(pairs):
    return np.full(len(pairs), 2.0)


@pytest.fixture
def installed(monkeypatch):
    """Two metrics as an installed package would bring them."""
    found = EntryPoints(
        EntryPoint(name, f"{__name__}:{name}", "omniopd.metrics") for name in ("shared_first_letter", "twice_too_large")
    )
    monkeypatch.setattr(EntryPoint, "load", lambda self: globals()[self.name])
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **of: found.select(**of))


def test_an_installed_package_adds_a_metric_by_entry_point(installed):
    metric = find_metric(ScoreConfig(phi="shared_first_letter"))
    assert phi(metric, [("a b", "a c"), ("a b", "c a")]) == [1.0, 0.0]


def test_a_metric_that_leaves_the_unit_interval_is_refused(installed):
    with pytest.raises(InputError, match="twice_too_large gave values that are no numbers in"):
        phi(find_metric(ScoreConfig(phi="twice_too_large")), [("a", "b")])


def test_an_unknown_metric_names_those_that_are_known(installed):
    with pytest.raises(ValueError, match=r"'levenstein' is no known similarity \(known: edit, .*shared_first_letter"):
        ScoreConfig(phi="levenstein")


def test_the_config_knows_the_metrics_that_there_are():
    assert set(METRIC_NAMES) == {*METRICS, "embedding"}


def test_the_embedding_is_a_clipped_cosine_of_the_cut_texts(student):
    pytest.importorskip("sentence_transformers")
    metric = find_metric(ScoreConfig(phi="embedding", embedding_model=str(student)))
    same, cut, other, miss = phi(metric, [("1+2=3", "1+2=3"), ("1+2=3", "1+2=3 and"), ("1+2=3", "9-5=4"), ("1", "")])
    assert same == pytest.approx(1.0, abs=1e-6)
    assert cut == same
    assert 0 <= other < same
    assert miss == 0.0


def test_an_embedding_model_that_is_not_there_is_one_clear_line(tmp_path):
    pytest.importorskip("sentence_transformers")
    with pytest.raises(InputError, match=r"is no sentence-transformers model"):
        find_metric(ScoreConfig(phi="embedding", embedding_model=str(tmp_path / "nothing")))
