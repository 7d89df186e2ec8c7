"""What a broker's address says about its certificate, as each of its clients understands that."""

from __future__ import annotations

import ssl

import pytest
from redis import Redis

from bank.errors import CannotStart
from bank.settings import Settings, read_settings
from bank.strategies.redis_lock import redis_url
from workers.app import create_app


def settings_for(address: str) -> tuple[Settings, str]:
    settings = read_settings({"BANKRUN_BROKER_URL": address})
    assert settings.broker_url is not None
    return settings, settings.broker_url.get_secret_value()


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", ssl.CERT_REQUIRED),
        ("?ssl_ca_certs=/etc/bankrun/ca.pem", ssl.CERT_REQUIRED),
        ("?ssl_cert_reqs=required", ssl.CERT_REQUIRED),
        ("?ssl_cert_reqs=CERT_NONE", ssl.CERT_NONE),
        ("?ssl_cert_reqs=none", ssl.CERT_NONE),
    ],
)
def test_a_certificate_is_checked_unless_the_address_says_otherwise(query: str, expected: ssl.VerifyMode) -> None:
    settings, url = settings_for(f"rediss://:p@h:1/0{query}")
    with create_app(settings) as app:
        assert app.connection_for_write().ssl["ssl_cert_reqs"] is expected
    strategies = Redis.from_url(redis_url(url)).connection_pool.make_connection()
    assert strategies.cert_reqs is expected
    assert strategies.check_hostname is (expected is ssl.CERT_REQUIRED)


def test_an_address_without_tls_stays_as_it_is() -> None:
    assert settings_for("redis://:p@h:1/0")[1] == "redis://:p@h:1/0"


def test_a_check_that_does_not_exist_is_refused() -> None:
    with pytest.raises(CannotStart, match=r"BANKRUN_BROKER_URL: ssl_cert_reqs=maybe: it is one of required, optional"):
        read_settings({"BANKRUN_BROKER_URL": "rediss://:secret@h/0?ssl_cert_reqs=maybe"})


def test_what_is_about_tls_is_refused_without_tls() -> None:
    """Kombu would speak TLS to that address, and redis-py, which strategies use, would not."""
    with pytest.raises(CannotStart, match="'ssl_ca_certs' is about TLS: such an address begins with rediss://"):
        read_settings({"BANKRUN_BROKER_URL": "redis://:secret@h/0?ssl_ca_certs=/etc/ca.pem"})
