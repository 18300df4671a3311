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
    Equivalent(
        "plain",
        "doubtful: Bools = dt_us > np.minimum(max_gap_us, policy.gaps.reach_us)",
        "Gt becomes GtE",
        "the rules, which are asked of more intervals, say the same of them; only slower",
    ),
    *(
        Equivalent(
            "plain",
            "doubtful |= growth > most_mw // MW_PER_W * dt_us // MW_PER_W",
            what,
            "limits are of whole watts, and the rules allow more by a refresh: of a millijoule up or down here they say what they said",
            nth=nth,
        )
        for what, nth in (("Gt becomes GtE", 0), ("// rounds", 0), ("// rounds", 1))
    ),
    Equivalent(
        "plain",
        "return cls(here, inside, offset[inside], np.maximum(width, 1))",
        "1 becomes 2",
        "no instant lies inside of a width of 1, and behind the last reading nothing grows, by whatever it is divided",
    ),
    Equivalent(
        "plain",
        "long = np.flatnonzero(np.abs(growth.astype(np.float64)) * np.abs(self.offset.astype(np.float64)) > _SAFE)",
        "Gt becomes GtE",
        "half of what 64 bits hold is left free: the product itself may go either way there",
    ),
    Equivalent(
        "plain",
        "values = self.column.slice(start, end - start).fill_null(0).to_numpy(writable=True)",
        "0 becomes 1",
        "what is null is taken out by what is known, whatever stands there",
    ),
    Equivalent(
        "readings",
        'one = several.unique("key", keep="first", maintain_order=True)',
        "True becomes False",
        "sorted by key below, of which each is there once by then",
    ),
    Equivalent(
        "shared_it",
        "first = from_us // US_PER_HOUR * US_PER_HOUR",
        "// rounds",
        "windows begin on full hours (pipeline refuses others)",
    ),
    Equivalent(
        "overhead",
        "first = from_us // US_PER_HOUR * US_PER_HOUR",
        "// rounds",
        "windows begin on full hours (pipeline refuses others)",
    ),
    *(
        Equivalent(
            "node_balance", text, what, "looks at more by the minute, which says the same of it; only slower", nth=nth
        )
        for text, what, nth in (
            ('& (pl.col("covered_us") >= length).fill_null(value=False)', "GtE becomes Gt", 0),
            ("steps = STEPS_US[1:] if rest.height > FEW_NODE_HOURS else STEPS_US[-1:]", "USub dropped", 0),
            ("steps = STEPS_US[1:] if rest.height > FEW_NODE_HOURS else STEPS_US[-1:]", "Gt becomes GtE", 0),
            ("steps = STEPS_US[1:] if rest.height > FEW_NODE_HOURS else STEPS_US[-1:]", "branches swapped", 0),
            ("steps = STEPS_US[1:] if rest.height > FEW_NODE_HOURS else STEPS_US[-1:]", "1 becomes 2", 1),
        )
    ),
    Equivalent(
        "overhead_models",
        '.agg(pl.col("energy_mj", "error_mj", "time_us").sum(), pl.col("boards_origin").first())',
        "first becomes last",
        _ALIKE,
    ),
    *(
        Equivalent(
            "overhead",
            'if into == "energy_mj" or parts.select((pl.col(total).fill_null(0) > 0).any()).item():',
            what,
            "of nothing each has nothing, spread or not; only slower",
            nth=nth,
        )
        for what, nth in (("Gt becomes GtE", 0), ("0 becomes 1", 0))
    ),
    Equivalent("overhead", '.filter(pl.col("time_us") > 0)', "0 becomes 1", "no meter spans a single microsecond"),
    *(
        Equivalent(
            "anchors",
            'step, rise = pl.col("key").diff().fill_null(1), pl.col("energy_mj").diff().fill_null(0)',
            what,
            "the first has nothing before it: only asked whether it is more than nothing, or no less",
        )
        for what in ("1 becomes 2", "0 becomes 1")
    ),
    Equivalent(
        "idle",
        '.agg(-pl.col("nano").sum(), pl.col("idle_us").sum(), pl.col("source", "coverage", "origin").first())',
        "first becomes last",
        _ALIKE,
    ),
    Equivalent(
        "idle",
        'paid.group_by("hour_us", "policy_id", maintain_order=True)',
        "True becomes False",
        "lines are sorted by hour and key before they are returned",
    ),
    Equivalent(
        "findings",
        'pl.col("job_id").is_not_null()',
        "& becomes |",
        "what has no job joins no holder below, and what has no energy has no slowed time",
        nth=3,
    ),
    Equivalent("findings", '& (pl.col("throttle_bits_us") > 0)', "0 becomes 1", "no meter spans a single microsecond"),
    Equivalent(
        "findings",
        'usage.filter(pl.col("job_id").is_not_null() & (pl.col("idle_us") > 0)).select("device_id", "hour_us").unique()',
        "Gt becomes GtE",
        "no idle run of who holds it touches an hour in which it was never idle; only slower",
    ),
    *(
        Equivalent(
            "findings",
            'told = pl.concat([contests, too_many, unended]).filter((pl.col("from_us") < to_us) & (pl.col("to_us") > from_us))',
            what,
            "what only touches the window has no hour of it below",
        )
        for what in ("Lt becomes LtE", "Gt becomes GtE")
    ),
    *(
        Equivalent("money", text, what, why)
        for text, what, why in (
            ("if any(abs(total or 0) >= 2**63 for total in totals):", "0 becomes 1", "1 is as far from 2^63 as 0 is"),
        )
    ),
    Equivalent(
        "sharing",
        "size: Numbers = active_mj.astype(object) if active_mj.max(initial=0) >= _MOST // PPM else active_mj",
        "GtE becomes Gt",
        "numbers of any size say what those of 64 bits do; only slower, and the limit itself still fits",
    ),
    *(
        Equivalent(
            "explain",
            "for places in (0, 3, 6, 9, 12, 15, 18, 21):",
            f"{places} becomes {places + 1}",
            "noughts at the end are cut off",
        )
        for places in (0, 3, 6, 9, 12, 15, 18)
    ),
    Equivalent(
        "replay",
        "size, sign = abs(total), -1 if total < 0 else 1",
        "Lt becomes LtE",
        "of nothing each part is nothing, whatever its sign",
    ),
    Equivalent(
        "chain",
        'hashlib.sha256((row.chain or b"") + other.text.encode()).digest() == other.chain for other in rows[place + 1 :]',
        "second term dropped",
        "one line more, its own: no hash is known that is the hash of itself and a text",
        nth=1,
    ),
    *(
        Equivalent(
            "reconcile",
            'pl.min_horizontal((pl.col("to_us") - 1) // US_PER_HOUR + 1, pl.lit((to_us - 1) // US_PER_HOUR + 1)),',
            what,
            "one hour more, of which the period covers nothing and adds nothing",
        )
        for what in ("- becomes +", "subtrahend dropped")
    ),
    *(
        Equivalent(
            "activity",
            'rows = theirs.sort(pl.col("pair") * (last_us - first_us + 1) + (pl.col("from_us") - first_us))',
            what,
            "a number that sorts by pair and by time, larger or smaller",
            nth=1,
        )
        for what in ("- becomes +", "subtrahend dropped")
    ),
    Equivalent(
        "activity",
        "return np.where(right, first[place] + holder - starts[span_of_piece[place]], -1)",
        "1 becomes 2",
        "only asked whether it is negative",
    ),
    Equivalent(
        "authority",
        'DEVICE_HOUR, keep="first", maintain_order=True',
        "True becomes False",
        "sorted anew below, by what each is there once of",
    ),
    Equivalent(
        "readings",
        "if first < keys.base_us or last >= keys.base_us + keys.span_us:",
        "Lt becomes LtE",
        "filtered though nothing lies outside; only slower",
    ),
    *(
        Equivalent(
            "findings",
            "long = end - begin >= least_us",
            what,
            "what of a run somebody held is asked to last as long below",
        )
        for what in ("- becomes +", "subtrahend dropped")
    ),
    Equivalent(
        "overhead",
        'running = pl.min_horizontal((pl.col("covered_us") + pl.col("gap_us")).fill_null(0), there)',
        "0 becomes 1",
        "boards that stand anywhere have pieces and so hours: none is null, silent as it may be",
    ),
    *(
        Equivalent(
            module,
            '.filter(pl.col("from_us") < pl.col("to_us"))',
            "Lt becomes LtE",
            "what is of no length has nothing covered and nothing missing; only slower",
        )
        for module in ("overhead", "node_balance")
    ),
    Equivalent(
        "findings",
        'share = pl.col("energy_mj").cast(pl.Int128) * pl.col("throttled_us") // pl.col("held_us").clip(1, None)',
        "1 becomes 2",
        "no meter spans a single microsecond",
    ),
    Equivalent(
        "findings",
        'return shaped.unique(identity, keep="last", maintain_order=True)',
        "True becomes False",
        "findings are sorted by what tells them apart before they are returned",
    ),
    *(
        Equivalent(
            "node_balance",
            text,
            "Eq becomes NotEq",
            "of the boards of a node's hour one begins it and one ends it: looks at all by the minute; only slower",
        )
        for text in ('& (pl.col("from_us") == pl.col("f"))', '& (pl.col("to_us") == pl.col("t"))')
    ),
    Equivalent(
        "anchors",
        "& (since > 0)",
        "Gt becomes GtE",
        "the reading before it stands before it, by how it is searched for",
    ),
    Equivalent(
        "findings",
        'usage.filter(pl.col("job_id").is_not_null() & (pl.col("idle_us") > 0)).select("device_id", "hour_us").unique()',
        "& becomes |",
        "no idle run of who holds it touches an hour in which it was never idle; only slower",
    ),
    Equivalent(
        "node_balance",
        '.filter(pl.col("covered_us") > 0)',
        "0 becomes 1",
        "no meter spans a single microsecond",
    ),
    Equivalent(
        "overhead_models",
        '.unique(["node_id", "model_from_us"], keep="first", maintain_order=True)',
        "True becomes False",
        "summed by node and hour below",
    ),
    Equivalent(
        "readings",
        '(same & same.shift(1)).fill_null(value=False).alias("beside:before"),',
        "False becomes True",
        "the first reading follows none, whatever is not known of the one before it",
    ),
    Equivalent(
        "shared_it",
        'energy, known = pl.col("energy_mj"), pl.col("known_us") > 0',
        "0 becomes 1",
        "no meter spans a single microsecond",
    ),
    Equivalent(
        "findings",
        '.explode("hour", empty_as_null=False)',
        "False becomes True",
        "nothing of no length is told by then",
    ),
    Equivalent(
        "sharing",
        'pl.when(is_job).then(pl.col("holder_key").rank("dense").cast(pl.Int64)).when(_STRANGE).then(-1).otherwise(-2)',
        "2 becomes 3",
        "only asked whether it is more than -2",
    ),
    Equivalent(
        "month",
        "if at - datetime.min.replace(tzinfo=UTC) != (at - datetime.min.replace(tzinfo=UTC)) // _HOUR * _HOUR:",
        "// rounds",
        "an instant within an hour is no full hour, up or down",
    ),
    Equivalent(
        "edges",
        'power: Ints = _grown(meter, "energy_mj", index) * _UW_PER_MW // np.maximum(width, 1)',
        "1 becomes 2",
        "nothing so short says anything of power, by the next line",
    ),
)
