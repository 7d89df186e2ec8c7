"""What a user may set by environment: one frozen object, read once at each entry point."""

from __future__ import annotations

import difflib
import itertools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict
from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from bank.errors import CannotStart

PREFIX = "BANKRUN_"
INSTANCE_PATTERN = r"^[A-Za-z0-9_.-]{1,60}$"
WAITS = ("lease_ttl_ms", "lock_timeout_ms", "idle_timeout_ms", "attempt_timeout_ms", "visibility_timeout_ms")
"""From the shortest to the longest: the holder of a lock gives up before a waiter for it is cut off."""
PATHS = ("state_dir", "heartbeat_file")
OF_COMPOSE = frozenset(
    PREFIX + name
    for name in (
        *("COMPOSE_BROKER", "IMAGE", "MAX_CONNECTIONS", "WORKERS"),
        *("PAGE_PORT", "POSTGRES_PORT", "RABBITMQ_PORT", "REDIS_PORT"),
    )
)
"""Read by compose.yaml alone. A user who has exported them for it may start a script of ours in the same shell."""
SECRETS_DIR = Path("/run/secrets")
"""Where containers find their secrets: a file ``bankrun_database_url``, and so on."""


class Settings(BaseSettings):
    """Where the servers are, how big an instance is, and how long anything may wait.

    The waits stand in this order, each shorter than the next, so that the holder of a lock gives up before a
    waiter for it is cut off: ``lease_ttl_ms`` < ``lock_timeout_ms`` < ``idle_timeout_ms`` < ``attempt_timeout_ms`` <
    ``visibility_timeout_ms``.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, env_ignore_empty=True)

    database_url: SecretStr | None = Field(None, description="Postgres 15 or newer; without it, an embedded one")
    broker_url: SecretStr | None = Field(None, description="Redis, Valkey or RabbitMQ; without it, an embedded Valkey")
    state_dir: Path | None = Field(None, description="where the embedded servers keep their data and logs")
    instance: str | None = Field(None, pattern=INSTANCE_PATTERN, description="this worker's name")
    threads: int = Field(8, ge=1, le=512, description="threads in each instance's pool")
    core: int | None = Field(None, ge=0, le=65_535, description="keep this worker to the core of this number (Linux)")
    pin_workers: bool = Field(
        True, description="keep each worker that is started here to one core, if there are as many workers as cores"
    )
    lease_ttl_ms: int = Field(2_000, ge=10, le=2**30 - 1, description="a lock with a lease expires after this")
    lock_timeout_ms: int = Field(5_000, ge=10, le=2**30 - 1, description="Postgres: the longest wait for one lock")
    idle_timeout_ms: int = Field(
        15_000, ge=10, le=2**31 - 1, description="Postgres: the longest idle time inside a transaction"
    )
    attempt_timeout_ms: int = Field(
        20_000, ge=10, le=2**31 - 1, description="a worker shuts a connection that says nothing for this long"
    )
    reuse_client: bool = Field(
        True, description="keep a channel's Redis client, where Kombu makes one for each command"
    )
    receive_many: bool = Field(
        True, description="a worker takes messages by a script, many at once, where Kombu takes each with BRPOP"
    )
    prefetch: int = Field(
        2, ge=1, le=100, description="messages held for each thread, as long as others find some in the queue; 1: none"
    )
    visibility_timeout_ms: int = Field(
        60_000,
        ge=1_000,
        le=2**40,
        description="a message comes back that was not acknowledged (RabbitMQ: by an instance that says nothing)",
    )
    patience_ms: int = Field(30_000, ge=100, le=2**31 - 1, description="a worker retries one delivery for this long")
    reconcile_ms: int = Field(2_000, ge=50, le=2**31 - 1, description="forgotten transfers are published after this")
    redeliveries_max: int = Field(5, ge=1, le=1_000, description="a transfer that ends no delivery fails after so many")
    startup_wait_ms: int | None = Field(
        None,
        ge=0,
        le=2**31 - 1,
        description="how long a worker (by default 30 s) or a lab (not) waits for what is starting",
    )
    control_key: SecretStr | None = Field(None, description="who shows it may pause or kill a worker: the page")
    start_workers: bool = Field(True, description="start workers here if none are running on the given servers")
    strategies: str | None = Field(
        None, description="a worker also accepts these, as module:Class, separated by commas; * is all in the path"
    )
    strategies_path: str | None = Field(None, description="folders in which those are looked for last, as in PATH")
    failpoint_key: SecretStr | None = Field(None, description="lets `bankrun chaos`, which makes it up, stop a worker")
    heartbeat_file: Path | None = Field(None, description="a worker touches it while it listens to the broker")

    @field_validator("*", mode="before")
    @classmethod
    def _is_text(cls, value: object, info: ValidationInfo) -> object:
        """Refuse what no value can mean: a blank, control characters, bytes that are no text, spaces about a path."""
        if isinstance(value, str):
            if not value.strip():
                raise ValueError("it is blank: give it a value, or unset it")
            if any(character < " " or "\x7f" <= character < "\xa0" for character in value):
                raise ValueError("there is a control character in it, a line's end perhaps")
            if not _is_unicode(value):
                raise ValueError("it is no valid UTF-8")
            if info.field_name in PATHS and value != value.strip():
                raise ValueError("it begins or ends with a space")
        return value

    @field_validator("database_url", mode="after")
    @classmethod
    def _is_postgres(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        url = _parse(value)
        if url.get_backend_name() not in ("postgresql", "postgres"):
            raise ValueError(
                f"{url.drivername}:// is not Postgres; it should look like postgresql://user@host/database"
            )
        _check_parts(url)
        return SecretStr(url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False))

    @field_validator("broker_url", mode="after")
    @classmethod
    def _is_broker(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        address = value.get_secret_value()
        scheme = address.partition("://")[0]
        if is_rabbitmq(address):
            _check_rabbitmq_parts(address)
        elif scheme in ("redis", "rediss", "redis+socket"):
            _check_redis_parts(address)
        else:
            raise ValueError(
                f"{_short(scheme)!r} is not an address of Redis or RabbitMQ; it should look like "
                "redis://host:6379/0 or amqp://user:password@host:5672/"
            )
        return SecretStr(require_certificate(address))

    @model_validator(mode="after")
    def _waits_are_in_order(self) -> Settings:
        for shorter, longer in itertools.pairwise(WAITS):
            if getattr(self, shorter) >= getattr(self, longer):
                raise ValueError(
                    f"{PREFIX}{shorter.upper()}={getattr(self, shorter)} must be less than "
                    f"{PREFIX}{longer.upper()}={getattr(self, longer)}"
                )
        return self


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # os.environ has a surrogate for each byte that is no text
        return False
    return True


NO_POSTGRES = "not an address; it should look like postgresql://user:password@host:5432/database"
NO_REDIS = "not an address; it should look like redis://:password@host:6379/0"
NO_RABBITMQ = "not an address; it should look like amqp://user:password@host:5672/"
OF_TLS = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs"})
NO_SPACES = "there is a space in the host's name"
CERTIFICATE_CHECKS = ("required", "optional", "none", "CERT_REQUIRED", "CERT_OPTIONAL", "CERT_NONE")
"""What Kombu knows; redis-py knows the first three."""


def _parse(value: SecretStr) -> URL:
    try:
        return make_url(value.get_secret_value().replace("postgres://", "postgresql://", 1))
    except (ArgumentError, ValueError):
        # "from None": the cause would print the address, and with it the password.
        raise ValueError(NO_POSTGRES) from None


def as_libpq(url: URL) -> str:
    """Return an address as libpq reads it: a space is %20, where SQLAlchemy writes a plus, or a space."""
    place, mark, query = url.set(drivername="postgresql").render_as_string(hide_password=False).partition("?")
    return place.replace(" ", "%20") + mark + query.replace("+", "%20")


def _check_parts(url: URL) -> None:
    """Raise ValueError for what libpq would refuse in an address. What it says is repeated only without a password."""
    if " " in (url.host or ""):
        raise ValueError(NO_SPACES)
    if url.port is not None and not 0 < url.port < 65_536:
        raise ValueError(f"there is no port {_short(str(url.port))}")
    try:
        conninfo_to_dict(as_libpq(url))
    except psycopg.Error as error:
        why = str(error).strip()
        is_query = why.startswith("invalid URI query parameter")
        raise ValueError(_short(why) if is_query else NO_POSTGRES) from None


def _check_redis_parts(address: str) -> None:
    """Raise ValueError for what Kombu or redis-py would stumble over."""
    try:
        url = urlsplit(address)
        names = [name for name, _ in parse_qsl(url.query, keep_blank_values=True)]
        host, _ = url.hostname or "", url.port
    except ValueError:
        raise ValueError(NO_REDIS) from None
    if " " in host:
        raise ValueError(NO_SPACES)
    is_socket = url.scheme == "redis+socket"
    if is_socket and len(url.path) < 2:
        raise ValueError("it names no socket; it should look like redis+socket:///run/redis.sock?virtual_host=0")
    if not is_socket and not re.fullmatch(r"/?[0-9]{0,9}", url.path):
        raise ValueError(
            f"{_short(url.path[1:])!r} is no number of a database; it should look like redis://host:6379/0"
        )
    for name in names:
        if name.startswith("ssl_") and url.scheme != "rediss":
            raise ValueError(f"{_short(name)!r} is about TLS: such an address begins with rediss://")
        if not name.startswith("ssl_") and not (is_socket and name == "virtual_host"):
            raise ValueError(f"{_short(name)!r} is no parameter of a Redis address")


def is_rabbitmq(address: str) -> bool:
    """Whether a broker's address is RabbitMQ's."""
    return address.startswith(("amqp://", "amqps://"))


def _check_rabbitmq_parts(address: str) -> None:
    """Raise ValueError for what Kombu or py-amqp would stumble over."""
    try:
        url = urlsplit(address)
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        host, _ = url.hostname or "", url.port
    except ValueError:
        raise ValueError(NO_RABBITMQ) from None
    if " " in host:
        raise ValueError(NO_SPACES)
    if "/" in url.path[1:].lstrip("/"):
        raise ValueError(f"{_short(url.path[1:])!r} is no name of a virtual host: a slash in it is %2F")
    for name in query:
        if name not in OF_TLS or url.scheme != "amqps":
            raise ValueError(f"{_short(name)!r} is no parameter of an address of RabbitMQ")
    if query.get("ssl_cert_reqs", "none") not in ("none", "required"):
        raise ValueError("ssl_cert_reqs is none or required")


def require_certificate(address: str) -> str:
    """Return a broker's address that says how far its certificate is checked: fully, if it says nothing.

    Kombu takes any certificate where ``rediss://`` says no more, and the password goes to whoever answers. Raises
    ValueError for a word that means nothing.
    """
    url = urlsplit(address)
    if url.scheme != "rediss":
        return address
    for name, wanted in parse_qsl(url.query, keep_blank_values=True):
        if name == "ssl_cert_reqs":
            if wanted not in CERTIFICATE_CHECKS:
                raise ValueError(f"ssl_cert_reqs={_short(wanted)}: it is one of {', '.join(CERTIFICATE_CHECKS[:3])}")
            return address
    return url._replace(query="&".join(filter(None, (url.query, "ssl_cert_reqs=required")))).geturl()


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"


def without_password(url: SecretStr | str) -> str:
    """Return the address as it may be shown, and as a user would write it: with ``***`` for every password."""
    text = url if isinstance(url, str) else url.get_secret_value()
    try:
        parsed = make_url(text)
        hidden = {name: "***" for name in parsed.query if "password" in name.lower()}
        shown = parsed.update_query_dict(hidden).render_as_string(hide_password=True)
        return shown.replace("postgresql+psycopg://", "postgresql://", 1)
    except (ArgumentError, ValueError):
        return text.partition("://")[0] + "://…"


def read_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from the environment, and what it does not say from the container's secrets.

    Raises CannotStart, in one sentence, for a value out of range and for a ``BANKRUN_`` variable that does not exist:
    a typo there would otherwise be ignored, and the run would measure something else than its user thinks.
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    for name in environ if environ is not None else os.environ:
        if name.upper().startswith(PREFIX) and name.upper() not in known | OF_COMPOSE:
            near = difflib.get_close_matches(name.upper(), known, n=1)
            raise CannotStart(
                f"{name} is not a setting of bankrun"
                + (f"; did you mean {near[0]}?" if near else f"; known: {', '.join(sorted(known))}")
            )
    try:
        if environ is None:
            return Settings(_secrets_dir=SECRETS_DIR if SECRETS_DIR.is_dir() else None)
        given = {
            name[len(PREFIX) :].lower(): text
            for name, text in environ.items()
            if name.startswith(PREFIX) and text and name not in OF_COMPOSE
        }
        return Settings.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = PREFIX + str(first["loc"][0]).upper() + ": " if first["loc"] else ""
        why = first["msg"].removeprefix("Value error, ").partition(", unable")[0]
        raise CannotStart(where + why.replace("Input should be", "it should be")) from None
    except SettingsError as error:  # a file that cannot be read, or is no text
        raise CannotStart(f"a secret in {SECRETS_DIR} cannot be read: {error.__cause__ or error}") from None
