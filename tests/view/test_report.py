"""`omniopd report`: a page whose figures are right, in which no text of a model is markup, and that loads nothing."""

import base64
import json
import re
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest

from omniopd.store.errors import InputError
from omniopd.store.evals import eval_of_run
from omniopd.store.reader import open_reader
from omniopd.view.report import charts, explorer, figures
from omniopd.view.report.build import write_report
from omniopd.view.report.glossary import OF_CHARTS, terms
from support.tables import newest
from support.written_run import add_evaluation, write_tables

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>{{7*7}}\x1b[31m\u202e'\"&amp;<!--"


def write(run, tmp_path, name="report.html", most=1000):
    target = tmp_path / name
    write_report(run, run.config(), target, most)
    return target.read_text(encoding="utf-8")


def unpacked(page):
    (data,) = re.findall(r'id="trajectories">([^<]*)<', page)
    return json.loads(zlib.decompress(base64.b64decode(data), -zlib.MAX_WBITS))


class Page(HTMLParser):
    """Tags and attributes of a page, and the text outside of scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self._inside = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside.append(tag)

    def handle_endtag(self, tag):
        if self._inside and self._inside[-1] == tag:
            self._inside.pop()
        self.text += " "

    def handle_data(self, data):
        if not self._inside:
            self.text += data


# -- figures


def test_figures_of_a_run_are_those_of_its_tables(written_run):
    with open_reader(written_run) as db:
        (student,) = figures.students(db)
        (audit,) = figures.audits(db)
        steps = figures.training(db)
    assert (student["trajectories"], student["length"], student["cut_off"]) == (2, (43 + 20) / 2, 0.5)
    assert student["repetition"] == 0.25
    assert (audit["chunks"], audit["rollouts"], audit["answered"]) == (4, 12, 8)
    assert (audit["prompt_tokens"], audit["completion_tokens"], audit["weight"]) == (120, 60, 0.375)
    assert [(step["step"], step["chunk_loss"]) for step in steps] == [(1, 0.3), (2, pytest.approx(0.2))]


def test_the_predicted_cost_is_the_papers_formula_and_its_table_8():
    """Table 8 counts 10,000 output tokens for M = 10, N = 10, C = 50, twice its own formula: N = 20 gives its row."""
    student = {"round": 0, "trajectories": 7, "prompt_length": 200.0, "length": 6340.0}
    audit = {"round": 0, "chunks": 70, "chunk_tokens": 50.0, "rollouts": 1400, "prompt_tokens": 7 * 40_000,
             "completion_tokens": 7 * 12_000, "cost_usd": 1.5}  # fmt: skip
    (cost,) = figures.costs([student], [audit], 20)
    assert (cost.input_predicted, cost.output_predicted) == (33_700, 10_000)
    assert (cost.input_billed, cost.output_billed, cost.usd) == (40_000, 12_000, 1.5)
    assert cost.effort_predicted == pytest.approx((33_700 + 8.3 * 10_000) / (200 + 8.3 * 6340))
    costs = figures.costs([student, student | {"round": 1}], [audit, audit | {"round": 1}], 20)
    assert [c.label for c in costs] == ["round 0", "round 1", "all rounds"]
    assert (costs[2].input_billed, costs[2].usd) == (40_000, 3.0)
    assert figures.costs([student], [audit | {"rollouts": None}], 20) == []


def test_histograms_count_every_item_once(written_run):
    with open_reader(written_run) as db:
        bins = figures.distributions(db)
        entropies = [value for (value,) in db.execute("SELECT anchor_entropy FROM chunks").fetchall()]
    for histogram in bins.values():
        assert sum(row["share"] for row in histogram.values) == pytest.approx(1.0)
    values = bins["anchor_entropy"].values
    edges = [row["low"] for row in values] + [values[-1]["high"]]
    expected, _ = np.histogram(entropies, bins=edges)
    assert [row["share"] * 4 for row in values] == pytest.approx(expected.tolist())
    # A weight of exactly 1 belongs to the last bin.
    assert bins["weight"].values[-1]["high"] == 1.0


def test_accuracy_comes_from_complete_evaluations(written_run):
    add_evaluation(written_run, 0, [True, False, False, False]).finish()
    add_evaluation(written_run, 1, [True, True, True, False]).finish()
    add_evaluation(written_run, 2, [True])  # still being graded
    rows = figures.accuracy(written_run)
    assert [(row["rounds"], row["accuracy"], row["answers"]) for row in rows] == [(0, 0.25, 4), (1, 0.75, 4)]
    spec = charts.accuracy(rows, [{"round": 0, "step": 5}])
    (values,) = spec["datasets"].values() if "datasets" in spec else [spec["data"]["values"]]
    assert [(value["step"], value["percent"]) for value in values] == [(0, 25.0), (5, 75.0)]
    assert all(value["low"] < value["percent"] < value["high"] for value in values)


def test_the_worst_and_best_chunks_come_first(written_run):
    with open_reader(written_run) as db:
        worst = figures.extreme_chunks(db, 2, best=False)
        best = figures.extreme_chunks(db, 2, best=True)
    assert [chunk["chunk_id"] for chunk in worst] == ["t0c0", "t0c1"]
    assert [chunk["chunk_id"] for chunk in best] == ["t1c0", "t1c1"]


# -- the block of trajectories


def test_segments_are_the_response_and_know_their_chunks(written_run):
    with open_reader(written_run) as db:
        block = explorer.block(db, 10, None)
    assert (block.shown, block.total, block.rounds, block.finishes) == (2, 2, [0], ["length", "stop"])
    first, second = unpacked(f'id="trajectories">{block.data}<')
    assert "".join(part[0] for part in first["text"]) == "Let me count.\nBut wait, I know sin A = 3/5."
    assert "".join(part[0] for part in first["text"] if part[2] == 1) == "t, I k"
    assert second["finish"] == "length"
    rollout, failed = first["chunks"][0]["rollouts"]
    assert rollout["times"] == 2
    assert "".join(text for text, _ in rollout["parts"]) == "but I know sin A"
    assert failed == {"times": 1, "status": "failed"}


def test_a_long_response_keeps_what_is_around_its_chunks():
    text = "".join(chr(ord("a") + i % 26) for i in range(5000))
    spans = [(1000, 1050), (4000, 4050)]
    cuts = [(0, 1000, 0, -1), (1000, 1050, 2, 0), (1050, 4000, 0, -1), (4000, 4050, 1, 1), (4050, 5000, 0, -1)]
    segments = [(*cut, text[cut[0] : cut[1]]) for cut in cuts]
    parts = explorer._elided(segments, spans, 1000)
    # What is left out and what is kept add up to the text, in order.
    at = 0
    for part in parts:
        if isinstance(part, int):
            at += part
        else:
            assert part[0] == text[at : at + len(part[0])]
            at += len(part[0])
    assert at == 5000
    kept = "".join(part[0] for part in parts if not isinstance(part, int))
    assert text[1000:1050] in kept
    assert text[4000:4050] in kept
    assert kept.startswith(text[:40])
    assert kept.endswith(text[-40:])
    assert len(kept) <= 1000
    assert explorer._elided(segments, spans, 5000) == [[s[4], s[2], s[3]] for s in segments]


def test_the_page_stays_small_however_much_was_written(make_run, tmp_path, monkeypatch):
    rng = np.random.default_rng(1)
    texts = ["".join(chr(c) for c in rng.integers(0x4E00, 0x9FFF, 3000)) for _ in range(30)]
    run = write_tables(make_run(name="big"), texts)
    monkeypatch.setattr(explorer, "_MOST_BYTES", 60_000)
    with open_reader(run) as db:
        block = explorer.block(db, 30, None)
        few = explorer.block(db, 7, None)
        monkeypatch.setattr(explorer, "_MOST_BYTES", 12_000)
        least = explorer.block(db, 30, None)
    assert len(block.data) <= 60_000
    assert block.shown == 30
    assert any(isinstance(part, int) for row in unpacked(f'id="trajectories">{block.data}<') for part in row["text"])
    assert (few.shown, few.total) == (7, 30)
    assert len(least.data) <= 12_000
    assert 0 < least.shown < 30


# -- the page


def test_no_text_of_a_model_becomes_markup(make_run, tmp_path):
    run = write_tables(make_run(name="evil", teacher={"model": HOSTILE}), [HOSTILE * 2, HOSTILE], rollout=HOSTILE)
    clean = write_tables(make_run(name="good"), ["a" * len(HOSTILE * 2), "b" * len(HOSTILE)], rollout="c")
    page, other = Page(write(run, tmp_path)), Page(write(clean, tmp_path, "other.html"))
    # The hostile run's page has the same elements as a harmless one's, but for words that agree.
    count = lambda p: {tag: sum(t == tag for t, _ in p.tags) for tag in ("script", "img", "iframe", "style", "meta")}  # noqa: E731
    assert count(page) == count(other)
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert "<img src=x onerror=alert(2)>" in page.text  # as text, in the cards
    assert "{{7*7}}" in page.text
    rows = unpacked(write(run, tmp_path))
    assert {"".join(part[0] for part in row["text"]) for row in rows} == {HOSTILE * 2, HOSTILE}


def test_json_in_the_page_cannot_end_its_script(written_run, tmp_path):
    add_evaluation(written_run, 0, [True], benchmark="<!--<script>").finish()
    (specs,) = re.findall(r'id="specs">(.*?)</script>', write(written_run, tmp_path), re.S)
    assert "<" not in specs
    assert "<!--<script>" in json.dumps(json.loads(specs))


def test_the_page_loads_nothing_and_runs_only_its_own_scripts(written_run, tmp_path):
    page = write(written_run, tmp_path)
    tags = Page(page).tags
    # A link to a place in the page itself loads nothing.
    links = [attrs[name] for _, attrs in tags for name in ("src", "href") if name in attrs]
    assert [link for link in links if not link.startswith("#")] == []
    (policy,) = [a["content"] for t, a in tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    scripts = re.findall(r"<script>(.*?)</script>", page, re.S)
    assert [explorer.sha256_source(script) in policy for script in scripts] == [True, True]
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.S)
    assert explorer.sha256_source(style) in policy


def test_the_page_shows_figures_cost_and_chunks(written_run, tmp_path):
    text = " ".join(Page(write(written_run, tmp_path)).text.split())
    for part in (
        "Audited chunks 4",
        "Rollouts 12 66.7% answered",
        "Spent $0.01",
        "Fork #2",
        "No accuracy yet",
        "failed http 500 4 33.33 %",
    ):
        assert part in text, part
    assert str(written_run.path.parent) not in text.replace(f"omniopd eval {written_run.path}", "")


def test_the_page_explains_every_term_of_the_glossary_as_plain_text(written_run, tmp_path):
    page = Page(write(written_run, tmp_path))
    assert ("a", {"href": "#glossary"}) in page.tags
    assert [tag for tag, _ in page.tags].count("dt") == len(terms()) > 50
    meanings = dict(terms())
    assert meanings["pi_true (π*_teacher)"].startswith("length-normalized probability of a chunk")
    assert "pi_teacher (π̂_teacher)" in page.text
    assert not [text for pair in terms() for text in pair if re.search(r"`|\]\(", text)]


def test_a_run_that_was_only_generated_has_a_page_too(make_run, tmp_path):
    run = make_run(name="young")
    with pytest.raises(InputError, match="no trajectory yet"):
        write(run, tmp_path)
    full = write_tables(make_run(name="full"))
    full.round(0).trajectories.folder.parent.mkdir(exist_ok=True)
    run.round(0).path.mkdir()
    full.round(0).trajectories.folder.rename(run.round(0).trajectories.folder)
    page = write(run, tmp_path)
    assert "No rollouts yet." in page
    assert "No chunk has been scored yet." in page
    assert unpacked(page)[0]["chunks"] == []


def test_a_damaged_table_is_named_and_the_others_are_shown(written_run, tmp_path):
    add_evaluation(written_run, 0, [True, False]).finish()
    add_evaluation(written_run, 1, [True, True]).finish()
    written_run.round(0).rollouts.files()[0].unlink()
    eval_of_run(written_run, 1, "aime24").responses().files()[0].write_bytes(b"")
    page = Page(write(written_run, tmp_path))
    text = " ".join(page.text.split())
    assert "Not in the figures below, because it is damaged or missing:" in text
    assert "rollouts/part-" in text
    assert "after=001" in text
    assert "after=000" not in text
    assert "question 0" in json.dumps(unpacked(write(written_run, tmp_path)))


def test_a_report_that_is_handed_on_does_not_say_where_the_policy_lies(written_run, tmp_path):
    written_run.round(0).policy.mkdir()
    assert str(written_run.round(0).policy) not in Page(write(written_run, tmp_path)).text


def test_a_run_whose_only_table_is_damaged_has_a_page_that_says_so(written_run, tmp_path):
    newest(written_run.round(0).trajectories.folder).write_text("{")
    assert "damaged or missing" in " ".join(Page(write(written_run, tmp_path)).text.split())


def test_every_chart_has_a_title_and_an_axis_with_a_unit(written_run, tmp_path):
    add_evaluation(written_run, 0, [True, False]).finish()
    (specs,) = re.findall(r'id="specs">(.*?)</script>', write(written_run, tmp_path), re.S)
    specs = json.loads(specs)
    assert len({spec["name"] for spec in specs}) == len(specs) >= 12
    for spec in specs:
        assert spec["description"]
        layers = spec.get("layer", [spec])
        titles = [encoding[axis].get("title") for layer in layers for encoding in [layer["encoding"]]
                  for axis in ("x", "y") if axis in encoding]  # fmt: skip
        assert all(titles), spec["name"]


@pytest.mark.parametrize("last", [0, 1, 2, 3, 7, 12, 250, 4321])
def test_the_steps_of_the_accuracy_stand_once_on_its_axis(last):
    import vl_convert

    results = [{"rounds": n, "benchmark": "b", "grader": "g", "accuracy": 0.4, "low": 0.3, "high": 0.5, "answers": 9}
               for n in (0, 1)]  # fmt: skip
    spec = charts.accuracy(results, [{"round": 0, "step": last}])
    drawn = vl_convert.vegalite_to_svg(
        {key: value for key, value in spec.items() if key not in ("name", "autosize")} | {"width": 330}
    )
    (axis,) = [axis for axis in re.findall(r'role-axis-label".*?</g>', drawn, re.S) if ">30<" not in axis]
    labels = re.findall(r"<text[^>]*>([^<]+)</text>", axis)
    assert labels
    assert labels == sorted(set(labels), key=int)


def test_a_tooltip_has_its_unit(written_run):
    with open_reader(written_run) as db:
        spec = charts.by_step("kl", figures.training(db), "kl_mean", "KL", "nats per token")
    tooltips = [t["title"] for t in spec["encoding"]["tooltip"] if "title" in t]
    assert tooltips == ["step", "KL, nats per token"]


def test_every_term_that_is_explained_in_place_is_in_the_glossary(written_run, tmp_path):
    page = Page(write(written_run, tmp_path))
    explained = [a["aria-description"] for tag, a in page.tags if tag == "button" and a.get("class") == "term"]
    assert len(explained) > 20
    assert set(explained) <= set(dict(terms()).values())
    assert set(OF_CHARTS.values()) <= set(dict(terms()))


def test_the_main_benchmark_is_the_one_with_most_answers():
    rows = [{"benchmark": b, "grader": g, "answers": n} for b, g, n in
            [("a", "dapo_regex", 10), ("a", "math_verify", 10), ("b", "math_verify", 4)]]  # fmt: skip
    assert figures.main_benchmark(rows) == ("a", "math_verify")
