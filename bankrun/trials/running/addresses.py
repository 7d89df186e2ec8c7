"""How a program is told which database to use: variables of its environment, and nothing else of it is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from urllib.parse import quote, urlencode

from bankrun.errors import CannotStart

FIELDS = ("url", "host", "port", "user", "password", "database")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a program reaches its database; ``host`` may be the directory of a socket."""

    host: str
    port: int
    user: str
    database: str
    password: str = ""

    @property
    def url(self) -> str:
        """As libpq, SQLAlchemy, asyncpg and node's pg read it."""
        login = quote(self.user, safe="") + (f":{quote(self.password, safe='')}" if self.password else "")
        database = quote(self.database, safe="")
        if self.host.startswith("/"):
            place = urlencode({"host": self.host, "port": self.port}, safe="/", quote_via=quote)
            return f"postgresql://{login}@/{database}?{place}"
        return f"postgresql://{login}@{self.host}:{self.port}/{database}"

    def environment(self, templates: Mapping[str, str]) -> dict[str, str]:
        """Return the variables: those of libpq, DATABASE_URL, and what the user asked for beside."""
        fields = {
            "url": self.url,
            "host": self.host,
            "port": str(self.port),
            "user": self.user,
            "password": self.password,
            "database": self.database,
        }
        variables = {
            "DATABASE_URL": self.url,
            "PGHOST": self.host,
            "PGPORT": str(self.port),
            "PGUSER": self.user,
            "PGDATABASE": self.database,
            "PGSSLMODE": "disable",
            "PGGSSENCMODE": "disable",
        }
        if self.password:
            variables["PGPASSWORD"] = self.password
        return variables | {name: _fill(template, fields) for name, template in templates.items()}


def _fill(template: str, fields: Mapping[str, str]) -> str:
    # In "postgresql+psycopg://{url}" the scheme is what the user wrote, and not that of the address.
    rest = fields["url"].partition("://")[2].replace("{", "{{").replace("}", "}}")
    return template.replace("://{url}", f"://{rest}").format(**fields)


def read_templates(given: Sequence[str]) -> dict[str, str]:
    """Return NAME=TEMPLATE options as variables. Raises CannotStart for one that cannot be filled in."""
    templates: dict[str, str] = {}
    for one in given:
        name, equals, template = one.partition("=")
        if not equals or not name.isidentifier():
            raise CannotStart(f"--env {one!r}: NAME=TEMPLATE, such as DB_URL='postgresql+psycopg://{{url}}'")
        if not _can_be_filled(template):
            known = " ".join(f"{{{field}}}" for field in FIELDS)
            raise CannotStart(f"--env {one!r}: a template has {known}, and no other braces")
        templates[name] = template
    return templates


def _can_be_filled(template: str) -> bool:
    """Whether it has our fields only, each as it is: a field of a field, or a width, would be somebody's trick."""
    try:
        fields = [field for field in Formatter().parse(template) if field[1] is not None]
    except ValueError:
        return False
    return "\0" not in template and all(
        name in FIELDS and not width and not conversion for _, name, width, conversion in fields
    )
