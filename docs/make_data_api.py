"""Makes `docs/reference/data-api.md`; `python docs/make_data_api.py` writes it."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from docs.data_api_rows import TABLES, VERDICTS, Row

PAGE = Path(__file__).parent / "reference" / "data-api.md"
TESTS = "tests/wire/"

_HEAD = """\
<!-- Made by docs/make_data_api.py from docs/data_api_rows.py; change those instead. -->

# The Data API, beside Amazon's

What Amazon's RDS Data API does on Aurora PostgreSQL (Serverless v2 and provisioned), and what
this gateway does. Every row names the tests that show it, in `tests/wire/`; nobody here has
called AWS. What is said of AWS comes from its service model, its user guide, or from what
users of it have recorded; the column *known* says which.

`compat = "aws"` at a target switches Amazon's limits and refusals on, so that what would fail
there fails here. The rows say "with `compat`" where that is so; where they do not, nothing
changes.

Libraries that are run against the gateway as they come from their registries: boto3, the AWS
CLI, the AWS SDK for JavaScript v3 and v2, aurora-data-api, sqlalchemy-aurora-data-api,
awswrangler, drizzle-orm, data-api-client, kysely-data-api. Their suites run with `compat`, too
(`test_compat_suites.py`): there they fail where their users report that they fail on AWS.

"""


def _cell(text: str) -> str:
    return text.replace("|", "\\|") or "-"


def _line(row: Row) -> str:
    tests = "<br>".join(f"`{test}`" for test in row.tests)
    cells = (row.what, row.verdict, row.aws, row.here, row.known)
    return f"| {' | '.join(map(_cell, cells))} | {tests} |"


def page() -> str:
    """The whole page."""
    lines = [f"- **{verdict}**: {meaning}" for verdict, meaning in VERDICTS.items()]
    for title, rows in TABLES.items():
        lines += ["", f"## {title}", "", "| what | | AWS | here | known | shown by |"]
        lines.append("|---|---|---|---|---|---|")
        lines += [_line(row) for row in rows]
    return _HEAD + "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
