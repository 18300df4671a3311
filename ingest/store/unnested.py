"""Rows as one array a column: a statement that is the same for any number of rows.

With a parameter for each value SQLAlchemy compiles the statement anew for each number of rows: 2.6 s of processor time
for 10,000 devices, 0.3 s like this. It opens no connection and runs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa


def unnested(table: sa.Table, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> sa.TableValuedAlias:
    """Return rows (at least one) as a table expression with these columns of ``table``, in the order given."""
    arrays = [
        sa.cast(sa.literal(list(values), sa.ARRAY(table.c[name].type)), sa.ARRAY(table.c[name].type))
        for name, values in zip(columns, zip(*rows, strict=True), strict=True)
    ]
    typed = [sa.column(name, table.c[name].type) for name in columns]
    return sa.func.unnest(*arrays).table_valued(*typed, name="given").render_derived()
