"""How each figure came to its holder, in one word: the least exact of what it is made of. It computes no energy."""

from __future__ import annotations

from typing import Final

import polars as pl

from analytics.frames import METHODS, NODE_OVERHEAD, SHARED_IT

_RANK: Final = {method: rank for rank, method in enumerate(METHODS)}
_OVERHEAD: Final = ("overhead", "overhead_model")


def least_exact(method: pl.Expr) -> pl.Expr:
    """Return the least exact of a group's methods, null where none of them is known."""
    return (
        method.replace_strict(_RANK, return_dtype=pl.Int64)
        .max()
        .replace_strict(dict(enumerate(METHODS)), return_dtype=pl.String)
    )


def category(method: pl.Expr, otherwise: pl.Expr) -> pl.Expr:
    """Return the charge category that energy of this method rides on: overhead and shared IT are no accelerator's time."""
    return (
        pl.when(method.is_in(_OVERHEAD))
        .then(pl.lit(NODE_OVERHEAD))
        .when(method == "shared_it")
        .then(pl.lit(SHARED_IT))
        .otherwise(otherwise)
    )
