"""What goes over the wire, and what does not: certificates, redirects, proxies, and keys in files."""

import asyncio
import base64
import contextlib
import re
import shutil
import ssl
import subprocess
import threading
from urllib.parse import quote

import pytest
from aiohttp import web

from omniopd.stages.audit.client import without_secrets
from omniopd.stages.audit.stage import audit
from omniopd.stages.audit.teachers.common import api_key
from omniopd.store.errors import TeacherError
from omniopd.store.sections import TeacherConfig
from support.processes import Command, finish

SECRET = "sk-very-secret-0123456789"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A self-signed certificate for 127.0.0.1."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject, *files]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@contextlib.contextmanager
def tls_server(folder, seen):
    """https://127.0.0.1 in a thread, with a model and nothing else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    loop = asyncio.new_event_loop()
    ready = threading.Event()
    urls = []

    async def answer(request):
        seen.append(dict(request.headers))
        return web.json_response({"data": [{"id": "scripted"}]})

    async def start():
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        urls.append(f"https://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/v1")
        ready.set()

    def serve():
        asyncio.set_event_loop(loop)
        loop.run_until_complete(start())
        loop.run_forever()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert ready.wait(10)
    yield urls[0]
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)


def test_a_certificate_that_nobody_vouches_for_is_one_line_and_the_key_stays_here(
    make_run, generated, certificate, monkeypatch
):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    seen = []
    with tls_server(certificate, seen) as url:
        run = make_run(questions=2, teacher={"base_url": url})
        generated(run)
        with pytest.raises(TeacherError, match=r"certificate of https://127\.0\.0\.1:\d+/v1 .*SSL_CERT_FILE") as caught:
            audit(run, 0, run.config())
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)
    assert seen == [], "no request was sent"


def test_a_certificate_authority_of_ones_own_is_taken_from_the_environment(
    make_run, generated, certificate, monkeypatch
):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
    seen = []
    with tls_server(certificate, seen) as url:
        run = make_run(questions=2, teacher={"base_url": url, "model": "other"})
        generated(run)
        with pytest.raises(TeacherError, match="has no model 'other'"):
            audit(run, 0, run.config())
    assert seen


@pytest.mark.parametrize("source", ["environment", "file"])
def test_no_byte_that_a_run_writes_or_says_holds_the_key(make_run, generated, teacher, monkeypatch, tmp_path, source):
    """The whole command, a refusal that repeats the key, a crash of a request and all."""
    settings = {"base_url": teacher.base_url, "max_attempts": 2}
    if source == "environment":
        monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    else:
        (tmp_path / "key").write_text(SECRET)
        settings["api_key_file"] = str(tmp_path / "key")
    run = make_run(questions=4, teacher=settings)
    generated(run)

    def behave(body, number):
        if number == 1:
            return web.json_response({"error": {"message": f"{SECRET} may not say so much"}}, status=400)
        return "hang up" if number == 2 else None

    teacher.behave = behave
    said = ""
    for command in (["--debug", "audit", "--no-check"], ["status", "--json"]):
        done = finish(*command, run.path)
        said += done.stdout + done.stderr
    assert SECRET not in said
    written = [path for path in run.path.rglob("*") if path.is_file()]
    assert any(path.name == "ledger.sqlite" for path in written)
    for path in written:
        assert not re.search(SECRET.encode(), path.read_bytes()), path


@pytest.mark.parametrize("key", [SECRET, "sk+very/secret=0123456789?"])
@pytest.mark.parametrize("before", ["", "x", "xy", "user:"])
def test_a_key_that_comes_back_in_another_writing_is_not_shown(key, before):
    headers = {"Authorization": f"Bearer {key}"}
    encoded = base64.b64encode(f"{before}{key} and more".encode()).decode()
    shown = without_secrets(f"{quote(key, safe='')} {encoded} {key}", headers)
    assert shown.count("(key)") == 3
    left = base64.b64encode(key.encode()).decode()
    assert not any(left[i : i + 8] in shown or key[i : i + 8] in shown for i in range(len(key) - 8))


def test_a_key_at_the_place_where_a_long_message_is_cut_is_not_shown_in_part():
    said = without_secrets("x" * 190 + SECRET, {"Authorization": f"Bearer {SECRET}"})
    assert said == "x" * 190 + "(key)"


def test_a_password_in_the_address_stays_in_the_config_file(make_run, generated, teacher, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    password = "hunter2-is-long"
    basic = base64.b64encode(f"user:{password}".encode()).decode()
    url = teacher.base_url.replace("://", f"://user:{password}@")
    run = make_run(questions=4, teacher={"base_url": url, "max_concurrency": 1})
    generated(run)

    def behave(body, number):
        if number == 1:
            return web.json_response({"error": {"message": f"not {basic} nor {password}"}}, status=400)
        return web.json_response({"error": {"message": f"{url} is not paid for"}}, status=402) if number == 4 else None

    teacher.behave = behave
    done = Command("audit", run.path, "--no-check").wait()
    assert done.returncode == 3
    assert f"The teacher at {teacher.base_url.replace('://', '://***@')} refuses the account: 402" in done.stderr
    assert password not in done.stdout + done.stderr
    rows = run.round(0).rollouts.read().to_pylist()
    assert {row["finish_reason"] for row in rows if row["status"] == "failed"} == {"400: not (key) nor (key)"}
    assert "://***@127.0.0.1" in run.resolved_config.read_text()
    for path in run.path.rglob("*"):
        if path.is_file() and path != run.config_toml:
            assert not re.search(f"{password}|{basic}".encode(), path.read_bytes()), path
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with pytest.raises(TeacherError, match="holds a password, and there is a key too"):
        audit(run, 0, run.config())


@pytest.mark.parametrize(("value", "key"), [(f"{SECRET}\n", SECRET), (f" {SECRET}\r\n", SECRET), ("\n", None)])
def test_the_end_of_a_line_is_no_part_of_a_key(monkeypatch, value, key):
    monkeypatch.setenv("SOME_KEY", value)
    assert api_key(TeacherConfig(), "SOME_KEY") == key
