"""`omniopd view`: what is served to whom, and that a page follows its run."""

import asyncio
import contextlib
import re
import signal
import socket
import subprocess
import sys

import aiohttp
import pytest

from omniopd.store.errors import ConfigError, UsageError
from omniopd.store.layout import RunDir
from omniopd.view.live import server
from omniopd.view.live.runs import differences
from support.browser import CHROMIUM, open_browser
from support.tables import edit
from support.written_run import add_evaluation, write_tables

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


@contextlib.asynccontextmanager
async def served(*runs, host="127.0.0.1"):
    """The link that is printed."""
    said: list[str] = []
    serving = asyncio.create_task(server.serve(server.pages_of(list(runs)), host, 0, browser=False, say=said.append))
    while not said:
        assert not serving.done(), serving.exception()
        await asyncio.sleep(0.01)
    yield said[0].split()[0]
    serving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await serving


async def get(session, url, **more):
    async with session.get(url, **more) as answer:
        return answer.status, await answer.text()


async def parts_of(session, url, since=0, wanted=()):
    """The parts that have changed since, once all of the page is there and those that are wanted have changed."""
    for _ in range(600):
        async with session.get(f"{url}parts", params={"since": str(since)}) as answer:
            told = await answer.json()
        if told["whole"] and told["version"] > since and set(wanted) <= set(told["parts"]):
            return told
        await asyncio.sleep(0.1)
    raise AssertionError(told)


def test_a_page_has_the_reports_parts_and_gets_only_what_has_changed(written_run):
    async def look():
        async with served(written_run) as url, aiohttp.ClientSession() as session:
            first = await parts_of(session, url)
            assert set(first["parts"]) == {"progress", "findings", "trajectories"}
            assert "No accuracy yet" in first["parts"]["findings"]["html"]
            for _ in range(3):
                await asyncio.sleep(1.2)
                async with session.get(f"{url}parts", params={"since": first["version"]}) as answer:
                    assert (await answer.json())["parts"] == {}
            # Another step of the trainer: the trajectories are as they were.
            with (written_run.metrics / "train-round=000.jsonl").open("a") as lines:
                lines.write('p": 2, "chunk_loss": 0.05, "seconds": 2.0, "tokens_per_s": 9.0, "skipped": false}\n')
            second = await parts_of(session, url, first["version"], ["progress", "findings"])
            assert set(second["parts"]) == {"progress", "findings"}

    asyncio.run(look())


def test_a_run_without_a_round_has_a_page_that_fills_up(make_run, tmp_path):
    run = make_run(name="young")

    async def look():
        async with served(run) as url, aiohttp.ClientSession() as session:
            first = await parts_of(session, url)
            assert "No round has begun" in first["parts"]["progress"]["html"]
            write_tables(run)
            second = await parts_of(session, url, first["version"], ["trajectories"])
            assert "All 2." in second["parts"]["trajectories"]["html"]

    asyncio.run(look())


def test_a_table_that_is_taken_away_is_named_and_the_page_goes_on(written_run):
    async def look():
        async with served(written_run) as url, aiohttp.ClientSession() as session:
            first = await parts_of(session, url)
            (part,) = written_run.round(0).chunks.folder.glob("part-*.parquet")
            part.unlink()
            edit(written_run.round(0).chunks.folder, {})
            second = await parts_of(session, url, first["version"], ["progress", "findings"])
            assert f"{part} is missing" in second["parts"]["findings"]["html"]
            assert f"{part} is missing" in second["parts"]["progress"]["html"]

    asyncio.run(look())


def test_what_cannot_be_read_is_told_and_the_page_stays(written_run):
    async def look():
        async with served(written_run) as url, aiohttp.ClientSession() as session:
            await parts_of(session, url)
            written_run.config_toml.write_text("[teacher")  # half of it, as an editor may write it
            for _ in range(600):
                async with session.get(f"{url}parts") as answer:
                    told = await answer.json()
                if told["error"]:
                    break
                await asyncio.sleep(0.1)
            assert "config.toml" in told["error"]
            assert "Audited chunks" in told["parts"]["findings"]["html"]

    asyncio.run(look())


def test_loopback_needs_no_token_and_answers_to_no_other_name(written_run):
    async def look():
        async with served(written_run) as url, aiohttp.ClientSession() as session:
            assert "token" not in url
            assert (await get(session, url))[0] == 200
            # A page elsewhere whose name leads here.
            assert (await get(session, url, headers={"Host": "evil.example"}))[0] == 403
            assert (await get(session, f"{url}parts", headers={"Host": "evil.example"}))[0] == 403
            async with session.post(url) as answer:
                assert answer.status == 405

    asyncio.run(look())


def test_any_other_address_needs_the_token(written_run):
    async def look():
        async with served(written_run, host="0.0.0.0") as url, aiohttp.ClientSession() as session:
            port, token = re.search(r":(\d+)/\?token=([\w-]{20,})$", url).groups()
            here = f"http://127.0.0.1:{port}/"
            for path in ("", "parts"):
                assert (await get(session, here + path))[0] == 403
                assert (await get(session, f"{here}{path}?token=wrong"))[0] == 403
                assert (await get(session, f"{here}{path}?token={token}"))[0] == 200

    asyncio.run(look())


def test_the_page_runs_its_own_scripts_and_reaches_only_its_server(written_run):
    async def look():
        async with served(written_run) as url, aiohttp.ClientSession() as session:
            return (await get(session, url))[1]

    page = asyncio.run(look())
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1].replace("&#39;", "'")
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert policy.endswith("connect-src 'self'")
    assert "unsafe" not in policy


def test_runs_side_by_side_show_what_differs_and_how_good_they_are(make_run):
    first, second = (
        write_tables(make_run(name=name, teacher={"temperature": t})) for name, t in (("a", 0.5), ("b", 1.0))
    )
    add_evaluation(first, 0, [True, False, False, False]).finish()

    async def look():
        async with served(first, second) as url, aiohttp.ClientSession() as session:
            told = await parts_of(session, url)
            assert (await get(session, f"{url}2/"))[0] == 200
            return told["parts"]["findings"]

    part = asyncio.run(look())
    text = " ".join(re.sub(r"<[^>]*>", " ", part["html"]).split())
    assert "teacher.temperature 0.5 1.0" in text
    assert "teacher.rollouts" not in text
    assert "Pass@1 , aime24, math_verify 25.0 %" in text
    assert {"accuracy", "chunk-loss"} <= {spec["name"] for spec in part["specs"]}


def test_a_key_whose_value_is_a_table_is_one_row_of_the_settings_that_differ():
    plain, adapted = {"train": {"lr": 1e-6, "lora": None}}, {"train": {"lr": 1e-6, "lora": {"rank": 4}}}
    assert differences([plain, adapted]) == [("train.lora", ["null", '{"rank": 4}'])]


def test_looking_changes_nothing_in_the_run(written_run):
    def content():
        return {p: p.read_bytes() for p in written_run.path.rglob("*") if p.is_file() and "sqlite-" not in p.name}

    before = content()

    async def look():
        async with served(written_run) as url, aiohttp.ClientSession() as session:
            await parts_of(session, url)

    asyncio.run(look())
    assert content() == before


def test_a_run_that_is_not_there_and_a_port_that_is_taken_are_told_with_the_way_out(written_run, tmp_path):
    with pytest.raises(ConfigError, match="omniopd init"):
        server.view([RunDir(tmp_path / "nowhere")], "127.0.0.1", 0, browser=False, say=print)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"Port {port} is taken\. Choose another one: --port {port + 1}"):
            server.view([written_run], "127.0.0.1", port, browser=False, say=print)
    with pytest.raises(UsageError, match="is no address of this machine"):
        server.view([written_run], "203.0.113.7", 0, browser=False, say=print)


def test_ctrl_c_ends_it_with_one_line(written_run):
    process = subprocess.Popen(
        [sys.executable, "-m", "omniopd", "view", str(written_run.path), "--port", "0", "--no-browser"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert process.stdout.readline().startswith("http://127.0.0.1:")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.count("\n") == 1
    assert stderr.startswith("omniopd: Interrupted.")


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: the page was not opened in a browser")
def test_no_page_is_wider_than_the_screen_and_a_hostile_run_stays_text(make_run, tmp_path):
    runs = [
        write_tables(make_run(name=name), ["A plain response. " * 30, HOSTILE], rollout=HOSTILE) for name in ("a", "b")
    ]

    async def look():
        async with served(*runs) as url, open_browser(tmp_path / "profile") as page:
            for path in ("", "1/"):
                for width, dark in ((1280, False), (800, True), (390, False)):
                    await page.show(url + path, width, dark)
                    assert await page.evaluate("document.documentElement.scrollWidth") == width, (path, width)
                    assert await page.evaluate("document.querySelectorAll('.chart svg').length") >= 2
            # The question of a trajectory can be read on a phone.
            question = "document.querySelector('.trajectory summary .text').getBoundingClientRect().width"
            assert await page.evaluate(question) > 250
            await page.evaluate("document.querySelectorAll('.trajectory').forEach((node) => (node.open = true))")
            assert "owned" not in await page.evaluate("document.title")
            assert await page.evaluate("document.querySelectorAll('main img, main script').length") == 0
            # A term is explained where it stands.
            await page.evaluate(
                "document.querySelector('.term').dispatchEvent(new MouseEvent('mouseover', { bubbles: true }))"
            )
            assert await page.evaluate("!document.getElementById('meaning').hidden")
            # What is open stays open when the rows change.
            table = runs[0].round(0).rollouts
            before = await page.evaluate("document.getElementById('live').dataset.changed")
            await asyncio.sleep(1.1)
            edit(table.folder, {})
            await page.until(f"document.getElementById('live').dataset.changed !== {before!r}")
            assert await page.evaluate("document.querySelectorAll('.trajectory[open]').length") == 2
            assert page.console == []

    asyncio.run(look())
