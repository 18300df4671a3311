"""Everything that names a table: schema, engine, embedded server, writer, partitions, queries."""
