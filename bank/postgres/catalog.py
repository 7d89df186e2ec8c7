"""What the catalog defines: whether our schema is as it was made, and what lies around it."""

from __future__ import annotations

from sqlalchemy import Connection, text

from bank.postgres import models
from bank.postgres.database import BALANCE_CHECK, Database

_OURS = {"schema": models.SCHEMA, "added": BALANCE_CHECK}
_AS_IT_IS = text("""
    WITH ours AS (SELECT oid FROM pg_namespace WHERE nspname = :schema)
    SELECT md5(string_agg(part, ',' ORDER BY part)) FROM (
        SELECT concat_ws(' ', 'relation', c.relname, c.relkind) AS part
        FROM pg_class c JOIN ours ON c.relnamespace = ours.oid
        UNION ALL SELECT concat_ws(' ', 'column', c.relname, a.attname, a.atttypid, a.attnotnull, a.atthasdef)
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN ours ON c.relnamespace = ours.oid
        WHERE a.attnum > 0 AND NOT a.attisdropped
        UNION ALL SELECT concat_ws(' ', 'constraint', k.conrelid::regclass, k.conname)
        FROM pg_constraint k JOIN ours ON k.connamespace = ours.oid WHERE k.conname <> :added
        UNION ALL SELECT concat_ws(' ', 'trigger', c.relname, t.tgname)
        FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN ours ON c.relnamespace = ours.oid
        UNION ALL SELECT concat_ws(' ', 'rule', c.relname, r.rulename)
        FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class JOIN ours ON c.relnamespace = ours.oid
        UNION ALL SELECT concat_ws(' ', 'function', p.proname, pg_get_function_identity_arguments(p.oid))
        FROM pg_proc p JOIN ours ON p.pronamespace = ours.oid
        UNION ALL SELECT concat_ws(' ', 'policy', c.relname, y.polname)
        FROM pg_policy y JOIN pg_class c ON c.oid = y.polrelid JOIN ours ON c.relnamespace = ours.oid
    ) parts
""")
_NOTED = text("SELECT obj_description(to_regclass(:schema || '.transfers'), 'pg_class')")
_AROUND = text("""
    SELECT concat_ws(' ', 'the setting', unnest(setconfig), 'of', coalesce(r.rolname, 'every role'), 'in',
                     coalesce(d.datname, 'every database'))
    FROM pg_db_role_setting s LEFT JOIN pg_database d ON d.oid = setdatabase LEFT JOIN pg_roles r ON r.oid = setrole
    UNION ALL SELECT 'the schema ' || nspname FROM pg_namespace
    WHERE NOT starts_with(nspname, 'pg_temp_') AND NOT starts_with(nspname, 'pg_toast_temp_')
    UNION ALL SELECT 'the event trigger ' || evtname FROM pg_event_trigger
    UNION ALL SELECT 'the extension ' || extname FROM pg_extension
    UNION ALL SELECT 'the role ' || rolname FROM pg_roles
    UNION ALL SELECT 'the table ' || n.nspname || '.' || c.relname
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'v') AND n.nspname NOT IN ('information_schema', :schema)
      AND NOT starts_with(n.nspname, 'pg_')
""")


def note_as_made(connection: Connection) -> None:
    """Note in a comment what our schema looks like now that it was made."""
    made = connection.execute(_AS_IT_IS, _OURS).scalar_one()
    connection.exec_driver_sql(f"COMMENT ON TABLE {models.SCHEMA}.transfers IS 'as made: {made}'")


def is_as_made(database: Database) -> bool:
    """Whether our schema looks as when it was made: no table, trigger, function or constraint of others is in it."""
    with database.engine.connect() as connection:
        noted = connection.execute(_NOTED, {"schema": models.SCHEMA}).scalar_one()
        return bool(noted == f"as made: {connection.execute(_AS_IT_IS, _OURS).scalar_one()}")


def describe_surroundings(database: Database) -> frozenset[str]:
    """Return what lies outside of our schema, and a strategy could change, in words."""
    with database.engine.connect() as connection:
        return frozenset(connection.execute(_AROUND, {"schema": models.SCHEMA}).scalars())
