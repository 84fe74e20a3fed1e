"""What PostgreSQL can do, so that the suite leaves nothing out that a driver might break.

The same for every driver.
"""

from sqlalchemy.testing import exclusions
from sqlalchemy.testing.requirements import SuiteRequirements

# What PostgreSQL, or version 15 of it, does not have.
_NOT_POSTGRESQL = {
    "computed_columns_default_persisted",
    "computed_columns_virtual",
    "dbapi_lastrowid",
    "emulated_lastrowid",
    "emulated_lastrowid_even_with_sequences",
    "fetch_percent",
    "foreign_keys_reflect_as_index",
    "legacy_unconditional_json_extract",
    "nvarchar_types",
    "reflect_table_options",
    "skip_autocommit_rollback",
    "temp_table_comment_reflection",
    "unique_index_reflect_as_unique_constraints",
}


class Requirements(SuiteRequirements):
    """Everything else is open."""

    @property
    def async_dialect(self):
        return exclusions.only_if(lambda config: config.db.dialect.is_async)

    @property
    def json_deserializer_binary(self):
        return exclusions.only_if("postgresql+psycopg")

    def get_isolation_levels(self, config):
        supported = config.db.dialect.get_isolation_level_values(None)
        return {"default": "READ COMMITTED", "supported": sorted(supported)}


def _closed(name):
    found = getattr(SuiteRequirements, name)
    if not isinstance(found, property):
        return False
    try:
        rule = found.fget(None)
    except Exception:  # noqa: BLE001 - asks its instance, so it decides for itself
        return False
    return getattr(rule, "skips", None) and not rule.enabled_for_config(None)


for _name in dir(SuiteRequirements):
    if not _name.startswith("_") and _name not in vars(Requirements):
        try:
            if _name not in _NOT_POSTGRESQL and _closed(_name):
                setattr(Requirements, _name, property(lambda self: exclusions.open()))
        except Exception:  # noqa: BLE001 - needs a database to decide
            continue
