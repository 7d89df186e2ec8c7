"""What our transport does where Kombu's would do more."""

from __future__ import annotations

import pytest

from bank.settings import Settings
from workers.app import create_app


@pytest.mark.parametrize("reuse", [True, False])
def test_a_channel_keeps_its_client_unless_it_is_told_not_to(settings: Settings, reuse: bool) -> None:
    app = create_app(settings.model_copy(update={"reuse_client": reuse}))
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        with channel.conn_or_acquire() as first, channel.conn_or_acquire() as second:
            assert first.ping()
            assert (first is second) == reuse
        channel._disconnect_pools()
        with channel.conn_or_acquire() as third:
            assert third is not first
            assert third.ping()
    app.close()
