"""Which provider-models the lines of an hour hang on, so that a price of others does not have the hour rated again.

Words are those of a change's scope (``ingest.store.imports``): ``provider/model``; ``provider/*`` where a price of any model of the
provider may come to count; ``provider/``, whatever is priced of it. Rather too many than one too few: it refuses to guess what an alias says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import polars as pl

from analytics.frames import GPU_OWNED

OWNED: Final = "owned"
_CALLS: Final = "api:"


@dataclass(frozen=True, slots=True)
class Uses:
    """What an hour is priced by: words as above, not lowered, and its prices, whose provider and model count besides."""

    words: tuple[str, ...]
    price_ids: tuple[int, ...]


def uses_of(lines: pl.DataFrame) -> Uses:
    """Return what the lines of one hour (LedgerLines) hang on."""
    is_owned = (pl.col("charge_category") == GPU_OWNED) & pl.col("device_model").is_not_null()
    is_call = (pl.col("pool") == "api") & pl.col("holder_key").str.starts_with(_CALLS)
    # What a line of calls is called: provider/model/part.
    called = pl.col("holder_key").str.strip_prefix(_CALLS).str.replace(r"/[^/]*$", "")
    named = (
        lines.filter(is_owned | is_call)
        .select(
            pl.when(is_call).then(called).otherwise(pl.lit(f"{OWNED}/") + pl.col("device_model")).alias("name"),
            (pl.col("price_id").is_null() | (is_call & (pl.col("source") != "measured"))).alias("is_open"),
        )
        .with_columns(pl.col("name").str.split("/").list.first().alias("provider"))
    )
    words = {
        *named["name"].to_list(),
        *(f"{provider}/" for provider in named["provider"].to_list()),
        *(f"{provider}/*" for provider in named.filter("is_open")["provider"].to_list()),
    }
    return Uses(tuple(sorted(words)), tuple(sorted(lines["price_id"].drop_nulls().unique().to_list())))
