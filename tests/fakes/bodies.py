"""Reads a batch body back with pyarrow and polars, independently of ingest: the tests' view of what travels."""

from dataclasses import dataclass

import polars as pl
import pyarrow as pa
import zstandard

from collector.wire import META_KEY, STREAM_KEY, BatchMeta, Stream


@dataclass(frozen=True)
class Body:
    meta: BatchMeta
    streams: dict[Stream, pl.DataFrame]


def read_body(body: bytes) -> Body:
    """Decode one body: a zstd frame of Arrow streams back to back, the first of which carries the batch's metadata."""
    data = pa.BufferReader(zstandard.ZstdDecompressor().decompress(body))
    meta: BatchMeta | None = None
    streams: dict[Stream, pl.DataFrame] = {}
    while data.tell() < data.size():
        table = pa.ipc.open_stream(data).read_all()
        table.validate(full=True)
        named = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
        meta = meta or BatchMeta.from_json(named[META_KEY])
        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)
        streams[Stream(named[STREAM_KEY])] = frame
    assert meta is not None
    return Body(meta, streams)
