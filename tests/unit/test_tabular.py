import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest.importers.columns import POWER_UNITS, Field, Source, read
from ingest.importers.errors import ImportFileError, MissingColumnError, OptionError, TabularError, UnitError
from ingest.importers.report import ImportReport, Progress

NODE = Field("node", "text", {"node": None, "host": None}, required=True, filled=True)
AT = Field("at", "instant", {"timestamp": None, "ts_ms": "ms"})
POWER = Field("power", "quantity", {"power": None, "watts": "W"}, units=POWER_UNITS, filled=True)
FIELDS = (NODE, AT, POWER)
Write = Callable[[str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def made(content: str | bytes) -> Path:
        path = tmp_path / "log.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return made


def taken(path: Path, **options: Any) -> tuple[list[tuple[Any, ...]], ImportReport]:
    report = ImportReport("test", path.name, "", "lab")
    source = Source(path, **({"tz": "UTC"} | options))
    rows = [row for chunk in read(source, FIELDS, report) for row in chunk.rows("node", "at", "power")]
    return rows, report


def objects(source: Source) -> tuple[list[Any], dict[str, int]]:
    report = ImportReport("test", source.path.name, "", "lab")
    tags = Field("tags", "object", {"tags": None})
    return [tag for chunk in read(source, (tags,), report) for _, tag in chunk.rows("tags")], dict(
        report.rejections.by_reason
    )


def powers(path: Path, **options: Any) -> list[int]:
    return [row[3] for row in taken(path, **options)[0]]


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_the_delimiter_is_found_in_the_header(write: Write, mark: str) -> None:
    path = write(f"node{mark}watts\nn1{mark}2000\n")
    assert taken(path)[0] == [(2, "n1", None, 2_000_000)]


def test_a_bom_quotes_and_spaces_after_commas_are_not_part_of_names(write: Write) -> None:
    path = write('\ufeff"node", watts\n"rack 1, n1", 2000\n')
    assert taken(path)[0] == [(2, "rack 1, n1", None, 2_000_000)]


def test_units_come_from_the_header_as_nvidia_smi_writes_it(write: Write) -> None:
    assert powers(write("host, power.draw [W]\nn1, 72.35 W\n"), columns={"power": "power.draw [W]"}) == [72_350]


def test_units_are_case_sensitive_where_it_matters(write: Write) -> None:
    assert powers(write("node,power (mW)\nn1,5\n")) == [5]
    with pytest.raises(UnitError, match=r"'MW'.*W, mW, kW"):
        taken(write("node,power (MW)\nn1,5\n"))


def test_a_power_without_any_unit_is_not_guessed(write: Write) -> None:
    with pytest.raises(UnitError, match=r"states no unit.*--unit power="):
        taken(write("node,power\nn1,5\n"))
    assert powers(write("node,power\nn1,5\n"), units={"power": "kW"}) == [5_000_000]


def test_mixed_units_stop_the_import(write: Write) -> None:
    with pytest.raises(UnitError, match="mixes units: W and kW"):
        taken(write("node,power\nn1,900 W\nn1,1 kW\n"))


def test_a_missing_column_names_what_is_accepted_and_what_is_there(write: Write) -> None:
    with pytest.raises(MissingColumnError, match="accepted are node, host; found are server, watts"):
        taken(write("server,watts\nn1,5\n"))
    assert powers(write("server,watts\nn1,5\n"), columns={"node": "server"}) == [5_000]


def test_mapping_an_unknown_field_or_to_an_unknown_column_is_refused(write: Write) -> None:
    path = write("node,watts\nn1,5\n")
    with pytest.raises(OptionError, match="no field 'nodes'; it has at, node, power"):
        taken(path, columns={"nodes": "node"})
    with pytest.raises(MissingColumnError, match="no such column; found are node, watts"):
        taken(path, columns={"node": "server"})


def test_bad_rows_are_counted_with_their_lines_and_the_rest_comes_in(write: Write) -> None:
    path = write('node,watts\nn1,5\nn2\n,7\nn3,"12,5"\nn4,abc\n\nn5,\nn6,1,2\nn7,6\n')
    rows, report = taken(path)
    assert [(row[0], row[1]) for row in rows] == [(2, "n1"), (10, "n7")]
    assert [(bad.line, bad.reason) for bad in report.rejections.examples] == [
        (3, "wrong number of fields"),
        (9, "wrong number of fields"),
        (4, "node is empty"),
        (5, "power is not a number"),
        (6, "power is not a number"),
        (8, "power is empty"),
    ]
    assert "decimal comma" in report.rejections.examples[3].detail
    assert (report.rows_read, report.rejections.total) == (8, 6)


def test_a_nul_byte_or_broken_utf8_spoils_only_its_row(write: Write) -> None:
    rows, report = taken(write(b"node,watts\nn\x001,5\nn\xff2,5\nn3,5\n"))
    assert [row[1] for row in rows] == ["n3"]
    assert report.rejections.by_reason == {"NUL byte": 1, "not UTF-8": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", "the first line must name the columns"),
        (b"\x00\x01\x02\x03", "binary bytes"),
        ("node,watts\n".encode("utf-16"), "UTF-16"),
        (b"PAR1 is not enough", "not a readable Parquet file"),
        (b'node,watts\n"n1,5\n' + b"x" * 200_000 + b"\n", "field larger than field limit"),
        (b"node,watts\n" + b"x" * 1_100_000, "longer than 1048576 characters"),
        (b",".join(b"c%d" % n for n in range(1_100)), "1100 columns; at most 1024"),
        (b"node,watts,watts\nn1,5,6\n", "2 times"),
    ],
)
def test_what_is_no_table_is_refused_with_the_reason(write: Write, content: bytes, message: str) -> None:
    with pytest.raises(ImportFileError, match=message):
        taken(write(content))


def test_gzip_is_read_and_a_cut_off_one_is_refused(write: Write) -> None:
    text = "node,watts\n" + "".join(f"n{number},{number}\n" for number in range(1, 5_000))
    whole = gzip.compress(text.encode())
    assert len(powers(write(whole))) == 4_999
    with pytest.raises(TabularError, match="cut off after line"):
        taken(write(whole[:-3_000]))


def test_parquet_reads_like_text(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    frame = pl.DataFrame(
        {"node": ["n1", "n2"], "watts": [0.1, None], "ts_ms": [1_715_341_080_337, 1_715_341_080_338]},
        schema_overrides={"node": pl.Categorical},
    )
    frame.write_parquet(path)
    rows, report = taken(path)
    assert rows == [(1, "n1", 1_715_341_080_337_000, 100)]
    assert report.rejections.by_reason == {"power is empty": 1}


@pytest.mark.parametrize(
    "told",
    [
        '[{"key": "team", "value": "nlp"}, {"key": "env", "value": null}, {"key": "team", "value": "no"}]',
        '[{"Key": "team", "Value": "nlp"}, {"Key": "env", "Value": null}]',
        '{"team": "nlp", "env": null}',
    ],
)
def test_an_object_may_be_spelled_as_a_list_of_keys_and_values(write: Write, told: str) -> None:
    quoted = told.replace('"', '""')
    assert objects(Source(write(f'tags\n"{quoted}"\n'))) == ([{"team": "nlp", "env": None}], {})


@pytest.mark.parametrize("told", ['["team"]', '[{"key": 1, "value": 2}]', '[{"key": "a"}]', "[1]", "7"])
def test_another_list_is_no_object(write: Write, told: str) -> None:
    quoted = told.replace('"', '""')
    assert objects(Source(write(f'tags\n"{quoted}"\n'))) == ([], {"not a JSON object": 1})


def test_tags_of_parquet_come_as_a_list_of_structs_as_a_map_or_as_a_struct(tmp_path: Path) -> None:
    pair = pa.struct([("key", pa.string()), ("value", pa.string()), ("inherited", pa.bool_())])
    listed = [[{"key": "team", "value": "nlp", "inherited": False}], None, []]
    for kind in (pa.list_(pair), pa.large_list(pair)):
        path = tmp_path / "tags.parquet"
        pq.write_table(pa.table({"tags": pa.array(listed, kind)}), path)
        assert objects(Source(path)) == ([{"team": "nlp"}, None, {}], {})
    pq.write_table(pa.table({"tags": pa.array([[("team", "nlp")]], pa.map_(pa.string(), pa.string()))}), path)
    assert objects(Source(path)) == ([{"team": "nlp"}], {})


def test_a_local_time_needs_a_zone_and_may_not_be_ambiguous(write: Write) -> None:
    path = write("node,timestamp,watts\nn1,2024-10-27 02:30:00,5\nn1,2024-03-31 02:30:00,5\nn1,2024-10-27 04:00:00,5\n")
    with pytest.raises(OptionError, match="times without a zone"):
        taken(path, tz=None)
    rows, report = taken(path, tz="Europe/Berlin")
    # 04:00 in winter time is 03:00 UTC.
    assert [row[2] for row in rows] == [1_729_998_000_000_000]
    assert [bad.detail.split(" in ")[0] for bad in report.rejections.examples] == [
        "2024-10-27 02:30:00 happens twice",
        "2024-03-31 02:30:00 does not exist",
    ]


@pytest.mark.parametrize(
    ("cell", "at_us"),
    [
        ("2023-11-16 18:15:46.6805909", 1_700_158_546_680_590),
        ("2023-11-16T19:15:46.680590+01:00", 1_700_158_546_680_590),
        ("2023/11/16 18:15:46", 1_700_158_546_000_000),
        ("2023-11-16", 1_700_092_800_000_000),
    ],
)
def test_instants_are_exact_to_the_microsecond(write: Write, cell: str, at_us: int) -> None:
    assert taken(write(f"node,timestamp,watts\nn1,{cell},5\n"))[0][0][2] == at_us


def test_bare_numbers_of_time_need_a_unit_and_a_wrong_one_is_noticed(write: Write) -> None:
    path = write("node,timestamp,watts\nn1,1715341080,5\n")
    with pytest.raises(UnitError, match="--unit at="):
        taken(path)
    assert taken(path, units={"at": "s"})[0][0][2] == 1_715_341_080_000_000
    rows, report = taken(path, units={"at": "ms"})
    assert (rows, report.rejections.by_reason) == ([], {"instant out of range": 1})


def test_numbers_are_exact_and_rounded_half_even_to_milliwatts(write: Write) -> None:
    path = write("node,watts\nn1,2.0905e3\nn1,0.0005\nn1,0.0015\nn1,1715341407147.0\nn1,nan\nn1,1e99\n")
    rows, report = taken(path)
    assert [row[3] for row in rows] == [2_090_500, 0, 2, 1_715_341_407_147_000]
    assert report.rejections.by_reason == {"power is empty": 1, "power is out of range": 1}


def test_progress_ends_at_the_whole_file(write: Write) -> None:
    path = write("node,watts\n" + "n1,5\n" * 45_000)
    seen: list[Progress] = []
    report = ImportReport("test", path.name, "", "lab")
    chunks = [len(chunk.lines) for chunk in read(Source(path), FIELDS, report, seen.append)]
    assert chunks == [20_000, 20_000, 5_000]
    assert (seen[-1].done, seen[-1].total, seen[-1].rows) == (path.stat().st_size, path.stat().st_size, 45_000)


def test_a_text_is_kept_as_the_store_can_hold_it_or_its_row_is_refused(write: Write, tmp_path: Path) -> None:
    rows, report = taken(write('node,watts\n"n\n1",5\n' + "é" * 513 + ",6\n" + "é" * 512 + ",7\n"))
    assert [(node, power) for _, node, _, power in rows] == [("n\ufffd1", 5_000), ("é" * 512, 7_000)]
    assert dict(report.rejections.by_reason) == {"text too long": 1}
    path = tmp_path / "log.parquet"
    pl.DataFrame({"node": ["n\0", "\x7f"], "watts": [5, 6]}).write_parquet(path)
    assert [row[1] for row in taken(path)[0]] == ["n\ufffd", "\ufffd"]


def test_a_parquet_file_with_bytes_that_are_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    broken = pa.Array.from_buffers(pa.utf8(), 1, pa.array([b"\xff\xfe"], pa.binary()).buffers())
    pq.write_table(pa.table({"node": broken, "watts": pa.array([5])}), path)
    with pytest.raises(TabularError, match=r"log\.parquet .*not UTF-8"):
        taken(path)
