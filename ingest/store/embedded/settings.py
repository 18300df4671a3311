"""What the embedded server runs with, each value with its reason.

Passed as `-c` options rather than written to postgresql.conf: the values follow the code and the machine, and a file the
user edits in the data folder keeps what is not named here. Refuses to trade durability: fsync and synchronous_commit
stay on, because an acknowledged batch is deleted from its agent's spool.
"""

from pathlib import Path

_MIB = 1 << 20
_SHARED_BUFFERS_MAX_BYTES = 256 * _MIB
_SHARED_BUFFERS_MIN_BYTES = 32 * _MIB


def server_settings(socket_dir: Path) -> dict[str, str]:
    """Return the settings by name."""
    shared_buffers_bytes = max(_SHARED_BUFFERS_MIN_BYTES, min(_SHARED_BUFFERS_MAX_BYTES, memory_bytes() // 8))
    return {
        "listen_addresses": "",  # the socket's folder is the only way in
        "unix_socket_directories": str(socket_dir).replace('"', '""').join('""'),  # a list: quoted, commas may occur
        "unix_socket_permissions": "0700",
        "port": "5432",  # names the socket file; a user's PGPORT must not
        "max_connections": "60",  # serve, worker and a few commands, each with a small pool
        "shared_buffers": f"{shared_buffers_bytes // _MIB}MB",
        "wal_compression": "pglz",  # the wheel has neither lz4 nor zstd
        "max_wal_size": "2GB",  # a minute of full-speed ingest between checkpoints instead of seconds
        "min_wal_size": "512MB",  # segments are used again instead of being filled with zeros first
        "checkpoint_completion_target": "0.9",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "log_line_prefix": "%m [%p] %u@%d ",
        "logging_collector": "off",  # the launcher gives it a log file
        "fsync": "on",
        "full_page_writes": "on",
        "synchronous_commit": "on",
    }


def memory_bytes() -> int:
    """Return what this machine or container may use, whichever is less."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemTotal:"):
            total_bytes = int(line.split()[1]) * 1024
            break
    else:
        raise RuntimeError("/proc/meminfo has no MemTotal")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:  # cgroup v1, or none: the machine's memory is the best known bound
        return total_bytes
    return total_bytes if limit == "max" else min(total_bytes, int(limit))
