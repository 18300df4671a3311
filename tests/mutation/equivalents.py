"""Faults that change nothing anybody could see, each with its reason: not run, not counted, listed in the report."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Equivalent:
    """One fault, found by the text of its line, so that it stays found when lines move and is looked at anew when the line changes."""

    module: str
    text: str
    """The line as it stands, without its indentation."""
    what: str
    reason: str
    nth: int = 0
    """Of several such faults on the line, which; from 0."""


_ALIKE = "equal in every row of the group"
_NUMBERS = "a number that tells segments apart, whatever it begins with"
_LONG_WAY = "more boards go the long way, which says the same of them; only slower"
_FILTERED_LATER = "lets more pairs in, which the filter after the join takes out"

EQUIVALENTS: tuple[Equivalent, ...] = (
    Equivalent("contests", 'before = pl.lit(plain["segment"].max() or 0, dtype=pl.Int64)', "0 becomes 1", _NUMBERS),
    Equivalent(
        "contests",
        'follows = pl.all_horizontal(*same, pl.col("start_us") == pl.col("end_us").shift(1)).fill_null(value=False)',
        "False becomes True",
        _NUMBERS,
    ),
    Equivalent(
        "contests",
        'if rows.height and rows["segment"].item(-1) < rows.height:',
        "Lt becomes LtE",
        "groups of one row each are the rows",
    ),
    Equivalent(
        "contests",
        'rows = rows.group_by("segment", maintain_order=True).agg(',
        "True becomes False",
        "whoever reads the rows sorts them",
    ),
    *(
        Equivalent("contests", text, what, _LONG_WAY)
        for text, what in (
            ('last_us = int(ordered["start_us"].max()) + 1  # type: ignore[arg-type]', "1 becomes 2"),
            ('place = pl.col("board_id").rank("dense").cast(pl.Int64) * (last_us - first_us)', "factor dropped"),
            ('place = pl.col("board_id").rank("dense").cast(pl.Int64) * (last_us - first_us)', "- becomes +"),
            ('place = pl.col("board_id").rank("dense").cast(pl.Int64) * (last_us - first_us)', "subtrahend dropped"),
            (
                'return ordered.filter(pl.col("start_us") + place < ends).select("board_id").unique()',
                "Lt becomes LtE",
            ),
        )
    ),
    Equivalent(
        "contests", '.explode("segment", empty_as_null=False)', "False becomes True", "no claim is of no length"
    ),
    Equivalent(
        "contests",
        '.otherwise(pl.min_horizontal(pl.col("num").sum(), pl.col("den").first()))',
        "first becomes last",
        _ALIKE,
    ),
    *(
        Equivalent(
            "contests",
            'several = parts.filter((pl.col("job_id").n_unique().over("segment") > 1) & pl.col("whole").any().over("segment"))',
            what,
            _FILTERED_LATER,
        )
        for what in ("& becomes |", "Gt becomes GtE")
    ),
    *(
        Equivalent("contests", text, "first becomes last", _ALIKE)
        for text in (
            'pl.min_horizontal(pl.col("num").sum(), pl.col("den").first()).alias("weight"),',
            'pl.col("device_id", "start_us", "end_us", "weights", "taken").first(),',
            '.agg(pl.col("device_id", "start_us", "end_us").first(), said.str.join(";").alias("said"))',
            'runs = numbered.group_by("run").agg(pl.col("segment").first(), pl.col("start_us").first(), pl.col("end_us").last())',
            'pl.col("board_id").first().alias("device_id"),',
            'pl.col("jobs", "evidence").first(),',
        )
    ),
    *(
        Equivalent("contests", text, "False becomes True", _NUMBERS)
        for text in ('by_segment.with_columns((~follows.fill_null(value=False)).cum_sum().alias("run"))',)
    ),
    *(
        Equivalent("usage", text, "0 becomes 1", "no meter spans a single microsecond")
        for text in (
            'parts = parts.filter(on_books | (pl.col("covered_us") + pl.col("gap_us") > 0)).with_columns(',
            'spanned, guessed = pl.col("spanned_us") > 0, (pl.col("spanned_us") > 0) & (pl.col("estimated_mj") > 0)',
            'pl.col("covered_us") + pl.col("gap_us") > 0',
            '.filter(pl.col("time_us") > 0)',
        )
    ),
    Equivalent(
        "usage",
        'spanned, guessed = pl.col("spanned_us") > 0, (pl.col("spanned_us") > 0) & (pl.col("estimated_mj") > 0)',
        "0 becomes 1",
        "no meter spans a single microsecond",
        nth=1,
    ),
    Equivalent(
        "usage",
        'return pieces.group_by("span", *_SPAN, maintain_order=True).agg(',
        "True becomes False",
        "the rows are grouped and sorted again before they are returned",
    ),
    Equivalent(
        "usage",
        'of_span = parts.unique("span", keep="first", maintain_order=True).select("span", *_SPAN, "feed", "origin")',
        "True becomes False",
        "what is taken is of the span, equal in all of its rows; order: see above",
    ),
    *(
        Equivalent(
            "usage",
            '(pl.col("gap_us") - pl.col("kept_us")).sum().alias("spanned_us"),',
            what,
            "only asked whether it is more than nothing, and the rows with nothing are filtered out above",
        )
        for what in ("- becomes +", "subtrahend dropped")
    ),
    Equivalent(
        "energy",
        "most, idle = (int(each[0]) if (each == each[0]).all() else np.repeat(each, lengths) for each in of_each)",
        "Eq becomes NotEq",
        "the same number for each row instead of once for all; only slower",
    ),
    Equivalent(
        "authority",
        'pl.lit(_SILENT).alias("reason"), pl.lit(0, dtype=pl.Int64).alias("then_mj")',
        "0 becomes 1",
        "what is merely silent is told without energy",
    ),
    Equivalent("claims", "FOREVER_US: Final = 2**61", "2 becomes 3", "any instant that nobody lives to see"),
    Equivalent("claims", "FOREVER_US: Final = 2**61", "61 becomes 62", "any instant that nobody lives to see"),
    Equivalent(
        "rollups",
        'if told["piece"].n_unique() < told.height:',
        "Lt becomes LtE",
        "sums over groups of one row each are the rows",
    ),
    *(
        Equivalent(
            "holding",
            'parts = held.filter((pl.col("start_us") < to_us) & (pl.col("end_us") > from_us))',
            what,
            "lets in what lies outside of the window, where no piece is; only slower",
        )
        for what in ("& becomes |", "Lt becomes LtE", "Gt becomes GtE")
    ),
    Equivalent(
        "holding",
        "first = from_us // US_PER_HOUR * US_PER_HOUR",
        "// rounds",
        "windows begin on full hours (pipeline refuses others)",
    ),
    Equivalent(
        "claims",
        '.agg(pl.col("wanted").sum(), pl.col("free").first(), pl.col("job_id").unique().sort().alias("jobs"))',
        "first becomes last",
        _ALIKE,
    ),
    Equivalent(
        "rollups",
        'spanned = (pl.col("covered_us") > 0) | (pl.col("energy_mj") > 0)',
        "0 becomes 1",
        "no meter spans a single microsecond",
    ),
    Equivalent(
        "rollups",
        'throttled = pl.when(pl.col("known_us") > 0).then(pl.col("throttled_us")).alias("throttled_us")',
        "0 becomes 1",
        "no meter spans a single microsecond",
    ),
    Equivalent(
        "claims",
        '.filter(pl.col("from_us") < pl.col("to_us"))',
        "Lt becomes LtE",
        "a stretch of no length is in no segment",
    ),
    Equivalent("claims", '.explode("segment", empty_as_null=False)', "False becomes True", "no span is of no length"),
    Equivalent(
        "authority",
        'short = read.filter(spans < pl.col("to_us") - pl.col("from_us"))',
        "Lt becomes LtE",
        "what is wholly spanned has no hole that could be left open",
    ),
    Equivalent(
        "authority",
        'follows = (pl.col("device_id").shift(-1) == pl.col("device_id")) & (pl.col("from_us").shift(-1) == pl.col("to_us"))',
        "USub dropped",
        "no piece ends where the one before it begins: each end is read for itself, only slower",
        nth=1,
    ),
    Equivalent(
        "holding",
        "check_sortedness=False,",
        "False becomes True",
        "asks polars to look whether what was sorted is sorted",
    ),
    *(
        Equivalent(
            "holding",
            'mine = inner.filter((pl.col("cut_us") > from_us) & (pl.col("cut_us") < to_us)).join(ids, on="device_id", how="semi")',
            what,
            "the window's ends are cuts already, and equal cuts are one",
        )
        for what in ("Gt becomes GtE", "Lt becomes LtE")
    ),
    *(
        Equivalent(
            "rollups",
            'short = read.filter(pl.col("covered_us") < pl.col("to_us") - pl.col("from_us"))',
            what,
            "what is wholly spanned has no hole that could be left open",
        )
        for what in ("Lt becomes LtE", "subtrahend dropped")
    ),
    *(
        Equivalent("money", text, what, "a group of no weight has its total given out below", nth=nth)
        for text in (
            'pl.when(pl.col("_weights") > 0).then(size * weights // pl.col("_weights")).otherwise(0).alias("_part")',
        )
        for what, nth in (("Gt becomes GtE", 0), ("0 becomes 1", 1))
    ),
    Equivalent(
        "pools", '.explode("hour", empty_as_null=False)', "False becomes True", "nothing of no length is left by then"
    ),
    Equivalent(
        "reconcile",
        '.explode("hour", empty_as_null=False)',
        "False becomes True",
        "an hour that is null covers nothing, and only hours that are covered stay",
    ),
    Equivalent(
        "tenant_minutes",
        "check_sortedness=False,  # sorted by device and time just now, and pieces are so by their declaration",
        "False becomes True",
        "asks polars to look whether what was sorted is sorted",
    ),
)
