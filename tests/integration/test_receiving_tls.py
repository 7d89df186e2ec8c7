"""The same through TLS, whose sockets may hold what the kernel no longer has. A proxy in this process speaks it."""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from redis import Redis

from bank.settings import Settings
from tests import hostile
from tests.integration.test_receiving import Taker, broker  # noqa: F401 - a fixture
from workers.broker.receiver import LONG

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed: no certificate")


async def relay(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """Pass on what comes, until one end is gone."""
    with suppress(OSError):
        while data := await source.read(65_536):
            target.write(data)
            await target.drain()
    target.close()


@pytest.fixture
def tls_url(settings: Settings, tmp_path: Path) -> Iterator[str]:
    """The broker's address through TLS."""
    assert settings.broker_url is not None
    behind = urlsplit(settings.broker_url.get_secret_value()).path
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem")
    make = f"openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -keyout {key} -out {certificate}"
    subprocess.run(make.split(), check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_unix_connection(behind)
        await asyncio.gather(relay(reader, to_server), relay(from_server, writer))

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(asyncio.start_server(serve, "127.0.0.1", 0, ssl=context), loop).result(5)
    yield f"rediss://127.0.0.1:{server.sockets[0].getsockname()[1]}/0?ssl_cert_reqs=none"
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    server.close()
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0.1))
    loop.close()


def test_it_receives_through_tls(broker: Redis, tls_url: str) -> None:  # noqa: F811 - the fixture
    taker = Taker(tls_url, ["q", "other"], prefetch=2)
    assert taker.turn(lambda: broker.info("clients")["blocked_clients"] == 2)
    count = LONG + 40
    broker.lpush("q", *(json.dumps(hostile.envelope()) for _ in range(count)))
    while len(taker.taken) < count:
        assert taker.turn_until(len(taker.taken) + 1)
        taker.acknowledge()
    assert taker.turn(lambda: broker.hlen("unacked") == 0)
    taker.connection.close()
    taker.hub.close()
