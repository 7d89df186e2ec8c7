"""Who may do what in Postgres: the schema belongs to the lab's role, and workers may do what a transfer takes.

The workers' rights belong to a role with a fixed name. Where a server has that role, the lab grants it exactly
``RIGHTS`` whenever it opens the bank; workers log in as it, or as a member of it. Where there is none, nothing is
granted, and one role does everything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import Connection, text

from bank.errors import CannotStart
from bank.postgres import models, versions
from bank.postgres.database import Database
from bank.settings import without_password

WORKER_ROLE = "bankrun_worker"
LAB_ROLE = "bankrun_lab"
SETUP_LOCK_KEY = 0x726F6C65  # "role": two who set up one server at the same time would trip over each other

RIGHTS: Mapping[str, Mapping[str, Sequence[str]]] = {
    # The whole row, though three columns would do: LOCK TABLE wants a right on the table.
    "accounts": {"SELECT": (), "UPDATE": ()},
    # What was accepted stays as it was accepted.
    "transfers": {
        "SELECT": (),
        "UPDATE": ("status", "reason", "instance", "thread", "attempts", "redeliveries", "decided_at"),
    },
    # The reconciler's notes.
    "runs": {"SELECT": (), "UPDATE": ("look_at", "pending", "idle_looks", "republished", "closed")},
    # The journal only grows, and no writer chooses a place in it: ``seq`` is drawn, never given.
    "entries": {
        "SELECT": (),
        "INSERT": ("id", "transfer_id", "account_id", "delta", "before", "after", "previous_entry", "read_at"),
    },
    "fences": {"SELECT": (), "INSERT": (), "UPDATE": ("fence",)},
}
"""What applying transfers takes, table by table: a right, and the columns it is limited to."""

SEQUENCES: Sequence[str] = ("entry_ids", "entry_seq", "fence_tokens")
"""Workers draw from these, and cannot set them back."""


def grant_to_workers(connection: Connection) -> None:
    """Give the workers' role what it needs, and take everything else in our schema from it, if there is such a role.

    A server with one role for everything has none, or calls the owner so: nothing is changed there.
    """
    if not connection.execute(
        text(
            "SELECT EXISTS (SELECT FROM pg_roles JOIN pg_namespace ON nspname = :schema"
            " WHERE rolname = :role AND pg_roles.oid <> nspowner)"
        ),
        {"role": WORKER_ROLE, "schema": models.SCHEMA},
    ).scalar_one():
        return
    schema, role = models.SCHEMA, WORKER_ROLE
    for kind in ("TABLES", "SEQUENCES"):
        connection.exec_driver_sql(f"REVOKE ALL ON ALL {kind} IN SCHEMA {schema} FROM {role}")
    connection.exec_driver_sql(f"REVOKE ALL ON SCHEMA {schema} FROM {role}")
    connection.exec_driver_sql(f"GRANT USAGE ON SCHEMA {schema} TO {role}")
    for table, rights in RIGHTS.items():
        granted = ", ".join(
            f"{right} ({', '.join(columns)})" if columns else right for right, columns in rights.items()
        )
        connection.exec_driver_sql(f"GRANT {granted} ON {schema}.{table} TO {role}")
    for sequence in SEQUENCES:
        connection.exec_driver_sql(f"GRANT USAGE ON SEQUENCE {schema}.{sequence} TO {role}")


def grant_installed(connection: psycopg.Connection[Any]) -> None:
    """Let workers use the tables and sequences that strategies made in our schema, in the connection's transaction.

    A strategy that made them for its transfers means that; and a worker without the right would take it for an outage.
    """
    made = connection.execute(
        """
        SELECT c.relname, c.relkind = 'S' FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_roles r ON r.rolname = %s AND r.oid <> n.nspowner
        WHERE n.nspname = %s AND c.relkind IN ('r', 'p', 'v', 'm', 'S') AND c.relname <> ALL(%s)
        """,
        [WORKER_ROLE, models.SCHEMA, [*(table.name for table in models.metadata.sorted_tables), *SEQUENCES]],
    ).fetchall()
    for name, is_sequence in made:
        rights = sql.SQL("USAGE ON SEQUENCE" if is_sequence else "SELECT, INSERT, UPDATE, DELETE ON")
        relation, role = sql.Identifier(models.SCHEMA, name), sql.Identifier(WORKER_ROLE)
        connection.execute(sql.SQL("GRANT {} {} TO {}").format(rights, relation, role))


def missing(connection: Connection, role: str) -> list[str]:
    """Return the rights in our schema that a role lacks, and would need to apply transfers."""
    needs = [
        (table, right, column)
        for table, rights in RIGHTS.items()
        for right in rights
        for column in rights[right] or [""]
    ]
    rows = connection.execute(
        text(MISSING),
        {
            "role": role,
            "schema": models.SCHEMA,
            "sequences": list(SEQUENCES),
            "tables": [table for table, _, _ in needs],
            "rights": [right for _, right, _ in needs],
            "columns": [column for _, _, column in needs],
        },
    )
    return [str(right) for (right,) in rows]


MISSING = """
    WITH ours AS (SELECT oid, nspname FROM pg_namespace WHERE nspname = :schema)
    SELECT 'USAGE on schema ' || nspname FROM ours WHERE NOT has_schema_privilege(:role, ours.oid, 'USAGE')
    UNION ALL
    SELECT DISTINCT need.privilege || ' on ' || relname
    FROM ours JOIN pg_class ON relnamespace = ours.oid
    JOIN unnest(CAST(:tables AS text[]), CAST(:rights AS text[]), CAST(:columns AS text[]))
        AS need (relation, privilege, attribute) ON need.relation = relname
    LEFT JOIN pg_attribute ON attrelid = pg_class.oid AND attname = need.attribute
    WHERE NOT CASE need.attribute WHEN '' THEN has_table_privilege(:role, pg_class.oid, need.privilege)
                   -- A column that an older bankrun's table lacks is NULL here, and not missed.
                   ELSE has_column_privilege(:role, pg_class.oid, attnum, need.privilege) END
    UNION ALL
    SELECT 'USAGE on ' || relname FROM ours JOIN pg_class ON relnamespace = ours.oid
    WHERE relname = ANY(:sequences) AND NOT has_sequence_privilege(:role, pg_class.oid, 'USAGE')
"""


def excess(connection: Connection, role: str) -> list[str]:
    """Return what a role may do besides applying transfers, in words. Of an owner or a superuser only that is said."""
    rows = connection.execute(
        text(EXCESS),
        {
            "role": role,
            "worker": WORKER_ROLE,
            "schema": models.SCHEMA,
            "privileges": [*TABLE_PRIVILEGES, *(["MAINTAIN"] if versions.can(connection, versions.MAINTAIN) else [])],
            "whole": [
                f"{right} on {table}" for table, rights in RIGHTS.items() for right in rights if not rights[right]
            ],
        },
    )
    found = [str(power) for (power,) in rows]
    return [power for power in found if power in ALMIGHTY] or found


TABLE_PRIVILEGES = ("INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER")
ALMIGHTY = ("is a superuser", f"owns the schema {models.SCHEMA}")
EXCESS = """
    WITH ours AS (SELECT oid, nspname, nspowner FROM pg_namespace WHERE nspname = :schema),
         it AS (SELECT * FROM pg_roles WHERE rolname = :role)
    SELECT 'is a superuser' FROM it WHERE rolsuper
    UNION ALL SELECT 'makes roles' FROM it WHERE rolcreaterole
    UNION ALL SELECT 'makes databases' FROM it WHERE rolcreatedb
    UNION ALL SELECT 'replicates' FROM it WHERE rolreplication
    UNION ALL SELECT 'bypasses row security' FROM it WHERE rolbypassrls
    UNION ALL SELECT 'owns the schema ' || nspname FROM ours WHERE pg_has_role(:role, nspowner, 'USAGE')
    UNION ALL SELECT 'is a member of ' || rolname FROM pg_roles
              WHERE rolname NOT IN (:role, :worker) AND pg_has_role(:role, oid, 'MEMBER')
    UNION ALL SELECT 'CREATE on database ' || datname FROM pg_database
              WHERE datname = current_database() AND has_database_privilege(:role, oid, 'CREATE')
    UNION ALL SELECT 'CREATE on schema ' || nspname FROM pg_namespace
              WHERE has_schema_privilege(:role, oid, 'CREATE')
    UNION ALL
    SELECT privilege || ' on ' || relname
    FROM ours JOIN pg_class ON relnamespace = ours.oid AND relkind = 'r',
         unnest(CAST(:privileges AS text[])) AS privilege
    WHERE has_table_privilege(:role, pg_class.oid, privilege) AND privilege || ' on ' || relname <> ALL (:whole)
    UNION ALL
    SELECT 'reads ' || nspname || '.' || relname
    FROM (SELECT nspname, relname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
          WHERE relkind IN ('r', 'p', 'm', 'v') AND nspname NOT IN (:schema, 'pg_catalog', 'information_schema')
                AND nspname NOT LIKE 'pg\\_%' AND has_table_privilege(:role, pg_class.oid, 'SELECT')
                AND has_schema_privilege(:role, pg_namespace.oid, 'USAGE')
          ORDER BY nspname, relname LIMIT 1) AS readable
"""


def workers_now(connection: Connection) -> list[str]:
    """Return the roles in which instances are connected to this database at the moment."""
    rows = connection.execute(
        text(
            "SELECT DISTINCT usename FROM pg_stat_activity WHERE datname = current_database() AND usename IS NOT NULL"
            " AND application_name LIKE 'bankrun %' AND application_name NOT IN ('bankrun lab', 'bankrun scheduler')"
            " ORDER BY usename"
        )
    )
    return [str(name) for (name,) in rows]


def check_may_create(connection: Connection, url: str) -> None:
    """Raise CannotStart unless our role may make a schema."""
    may, role, name = connection.exec_driver_sql(
        "SELECT has_database_privilege(current_database(), 'CREATE'), current_user, current_database()"
    ).one()
    if not may:
        raise CannotStart(
            f"{without_password(url)}: the role {role} may not make the schema {models.SCHEMA!r} there; "
            f"as the database's owner: GRANT CREATE ON DATABASE {name} TO {role}"
        )


def check_owner(connection: Connection, url: str) -> None:
    """Raise CannotStart unless our schema is our role's."""
    may, owner, role = connection.execute(
        text(
            "SELECT pg_has_role(nspowner, 'USAGE'), pg_get_userbyid(nspowner), current_user"
            " FROM pg_namespace WHERE nspname = :name"
        ),
        {"name": models.SCHEMA},
    ).one()
    if not may:
        raise CannotStart(
            f"{without_password(url)}: the schema {models.SCHEMA!r} belongs to the role {owner}, and {role} is no "
            f"member of it: connect as {owner}"
        )


def check_readable(database: Database) -> None:
    """Raise CannotStart unless our role may read the bank, which is there."""
    with database.engine.connect() as connection:
        role = connection.exec_driver_sql("SELECT current_user").scalar_one()
        lacking = [right for right in missing(connection, role) if right.startswith(("SELECT", "USAGE on schema"))]
    if lacking:
        raise CannotStart(f"{without_password(database.url)}: the role {role} lacks {', '.join(lacking)}")


def check_worker_roles(database: Database) -> None:
    """Raise CannotStart if a role in which instances are connected lacks what transfers take."""
    with database.engine.connect() as connection:
        for role in workers_now(connection):
            _check_may_apply(connection, database.url, role)


def check_own_role(database: Database) -> None:
    """Raise CannotStart if there is a bank, and our own role lacks what transfers take, and is not about to get it.

    The workers' role is: the lab that opens the bank grants it what is new.
    """
    with database.engine.connect() as connection:
        if connection.execute(text(IS_WORKER), {"worker": WORKER_ROLE}).scalar_one():
            return
        role = connection.exec_driver_sql("SELECT current_user").scalar_one()
        _check_may_apply(connection, database.url, role)


IS_WORKER = "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = :worker AND pg_has_role(oid, 'MEMBER'))"


def _check_may_apply(connection: Connection, url: str, role: str) -> None:
    lacking = missing(connection, role)
    if lacking:
        shown = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")
        raise CannotStart(
            f"{without_password(url)}: workers log in as {role}, which lacks {shown}; "
            f"as the owner: GRANT {WORKER_ROLE} TO {role} (SECURITY.md says how that role is made)"
        )


# --- Servers that are bankrun's alone: the embedded one, and the one of the compose stack ----------------------------


def set_up_server(
    connection: psycopg.Connection[Any], *, worker_password: str | None = None, lab_password: str | None = None
) -> None:
    """Make the roles on a server that is bankrun's alone, as its superuser; nothing changes the second time.

    No other role may connect any more. A bank that the superuser made, before there were roles, becomes the lab's,
    if there is a ``lab_password``. Without passwords the roles are for a server that asks for none.
    """
    schema, lab, worker = map(sql.Identifier, (models.SCHEMA, LAB_ROLE, WORKER_ROLE))
    database = sql.Identifier(connection.info.dbname)
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [SETUP_LOCK_KEY])
        for (name,) in connection.execute("SELECT datname FROM pg_database WHERE datallowconn").fetchall():
            connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(sql.Identifier(name)))
        _make_role(connection, WORKER_ROLE, worker_password)
        connection.execute(sql.SQL("ALTER ROLE {} SET search_path = {}").format(worker, schema))
        connection.execute(sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(database, worker))
        if lab_password is None:
            return
        _make_role(connection, LAB_ROLE, lab_password)
        connection.execute(sql.SQL("GRANT CONNECT, CREATE ON DATABASE {} TO {}").format(database, lab))
        # The proof waits for deadlocks thousands of times.
        connection.execute(sql.SQL("GRANT SET ON PARAMETER deadlock_timeout TO {}").format(lab))
        if connection.execute("SELECT FROM pg_namespace WHERE nspname = %s", [models.SCHEMA]).rowcount:
            connection.execute(sql.SQL("ALTER SCHEMA {} OWNER TO {}").format(schema, lab))
        for kind, name in connection.execute(
            "SELECT CASE relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, relname FROM pg_class"
            " WHERE relkind IN ('r', 'S') AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = %s)"
            " AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = pg_class.oid AND deptype IN ('a', 'i'))"
            " AND pg_get_userbyid(relowner) <> %s",
            [models.SCHEMA, LAB_ROLE],
        ).fetchall():
            connection.execute(
                sql.SQL("ALTER {} {}.{} OWNER TO {}").format(sql.SQL(kind), schema, sql.Identifier(name), lab)
            )


def _make_role(connection: psycopg.Connection[Any], name: str, password: str | None) -> None:
    """Make a role that may log in and nothing else, or set its password, which is not sent in the clear."""
    role = sql.Identifier(name)
    if not connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [name]).rowcount:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
    if password is not None:
        verifier = connection.pgconn.encrypt_password(password.encode(), name.encode(), b"scram-sha-256").decode()
        connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(role, sql.Literal(verifier)))
