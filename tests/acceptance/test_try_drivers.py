"""The same transfer through several drivers gets the same verdict; those that are not installed are skipped."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bankrun.servers.places import Place
from bankrun.trials.running.programs import Command
from bankrun.trials.running.scratch import psql_argv
from bankrun.trials.trial import Trial, ask, open_server, put_on_trial

pytestmark = pytest.mark.long

SCHEMA = (
    "CREATE TABLE account (id int PRIMARY KEY, balance int); INSERT INTO account VALUES (1, 100), (2, 100), (3, 100);"
)
PROGRAMS = """
import os

URL = os.environ["DATABASE_URL"]
READ, WRITE = "SELECT balance FROM account WHERE id = {}", "UPDATE account SET balance = {} WHERE id = {}"

def by_psycopg(a, b, amount):
    with psycopg.connect(URL) as c:
        x, y = (c.execute(READ.format("%s"), [one]).fetchone()[0] for one in (a, b))
        c.execute(WRITE.format("%s", "%s"), [x - amount, a])
        c.execute(WRITE.format("%s", "%s"), [y + amount, b])

def by_psycopg2(a, b, amount):
    with psycopg2.connect(URL) as c, c.cursor() as k:
        seen = []
        for one in (a, b):
            k.execute(READ.format("%s"), [one])
            seen.append(k.fetchone()[0])
        k.execute(WRITE.format("%s", "%s"), [seen[0] - amount, a])
        k.execute(WRITE.format("%s", "%s"), [seen[1] + amount, b])

async def by_asyncpg(a, b, amount):
    c = await asyncpg.connect(URL)
    async with c.transaction():
        x, y = [await c.fetchval(READ.format("$1"), one) for one in (a, b)]
        await c.execute(WRITE.format("$1", "$2"), x - amount, a)
        await c.execute(WRITE.format("$1", "$2"), y + amount, b)
    await c.close()

def by_sqlalchemy(a, b, amount):
    with sqlalchemy.create_engine(URL.replace("postgresql:", "postgresql+psycopg:", 1)).begin() as c:
        x, y = (c.execute(sqlalchemy.text(READ.format(":id")), {"id": one}).scalar_one() for one in (a, b))
        c.execute(sqlalchemy.text(WRITE.format(":balance", ":id")), {"balance": x - amount, "id": a})
        c.execute(sqlalchemy.text(WRITE.format(":balance", ":id")), {"balance": y + amount, "id": b})
"""
DJANGO = """
from django.db import models, transaction


class Account(models.Model):
    balance = models.IntegerField()
    touched = models.DateTimeField(auto_now=True)

    class Meta:
        app_label = "shop"

def migrate():
    from django.core.management import call_command
    call_command("migrate", "--run-syncdb", verbosity=0)
    Account.objects.bulk_create([Account(id=one, balance=100) for one in (1, 2, 3)])

def by_django(a, b, amount, lock=False):
    accounts = Account.objects.select_for_update() if lock else Account.objects
    with transaction.atomic():
        x, y = accounts.get(id=a), accounts.get(id=b)
        x.balance -= amount
        y.balance += amount
        x.save()
        y.save()
"""
SCRIPT = """
BEGIN;
SELECT balance FROM account WHERE id = 1 \\gset
UPDATE account SET balance = :balance - 10 WHERE id = 1;
UPDATE account SET balance = balance + 10 WHERE id = 2;
COMMIT;
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Place]:
    with open_server() as place:
        yield place


def check(found: Trial, table: str = "account", verdict: str = "broken") -> None:
    assert found.verdict == verdict, found.sentences
    if verdict == "broken":
        assert found.difference.startswith(f"{table}.balance of id 1 is 90; either serial order gives 80")


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "asyncpg", "sqlalchemy"])
def test_a_transfer_that_reads_and_writes_is_broken_through(server: Place, tmp_path: Path, driver: str) -> None:
    if importlib.util.find_spec(driver) is None:
        pytest.skip(f"{driver} is not installed")
    (tmp_path / "schema.sql").write_text(SCHEMA)
    # Imported once, and not in each execution.
    (tmp_path / "drivers.py").write_text(f"import {driver}{', psycopg' if driver == 'sqlalchemy' else ''}\n{PROGRAMS}")
    calls = [f"{tmp_path / 'drivers.py'}:by_{driver}(1, {to}, 10)" for to in (2, 3)]
    found = put_on_trial(ask(calls, setup=str(tmp_path / "schema.sql"), instances="two"), place=server)
    check(found)
    assert found.executions <= 8  # what drivers ask by themselves is no step


def test_the_same_through_psql(server: Place, tmp_path: Path) -> None:
    (tmp_path / "schema.sql").write_text(SCHEMA)
    (tmp_path / "transfer.sql").write_text(SCRIPT)
    check(put_on_trial(ask([tmp_path / "transfer.sql"], setup=tmp_path / "schema.sql"), place=server))


def test_a_program_in_another_language(server: Place, tmp_path: Path) -> None:
    perl = shutil.which("perl")
    if perl is None:
        pytest.skip("perl is not installed")
    (tmp_path / "schema.sql").write_text(SCHEMA)
    (tmp_path / "transfer.sql").write_text(SCRIPT)
    (tmp_path / "transfer.pl").write_text(f"exec(@ARGV, '-X', '-q', '-f', '{tmp_path / 'transfer.sql'}') or die;\n")
    program = Command((perl, str(tmp_path / "transfer.pl"), psql_argv()[0]))
    check(put_on_trial(ask([program], setup=tmp_path / "schema.sql"), place=server))


@pytest.mark.parametrize(("arguments", "verdict"), [("", "broken"), (", True", "safe")])
def test_django_is_redirected_and_set_up_by_its_migrations(tmp_path: Path, arguments: str, verdict: str) -> None:
    if importlib.util.find_spec("django") is None:
        pytest.skip("django is not installed")
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").write_text("")
    (tmp_path / "shop" / "models.py").write_text(DJANGO)
    (tmp_path / "settings.py").write_text(
        "SECRET_KEY = 'x'\nINSTALLED_APPS = ['shop']\nUSE_TZ = True\n"
        "DEFAULT_AUTO_FIELD = 'django.db.models.BigAutoField'\n"
        "DATABASES = {'default': {'ENGINE': 'django.db.backends.postgresql', 'NAME': 'theirs', 'HOST': 'db.x'}}\n"
    )
    code = (
        "import os, sys\nos.environ['DJANGO_SETTINGS_MODULE'] = 'settings'\nfrom bankrun import trial\n"
        f"calls = [f'shop/models.py:by_django(1, {{to}}, 10{arguments})' for to in (2, 3)]\n"
        "found = trial(*calls, setup='shop/models.py:migrate', instances='two')\n"
        "print(found.verdict, found.difference)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.stdout.startswith(verdict), done.stdout + done.stderr
