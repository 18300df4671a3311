"""The command line ``wattledger-agent``: reads arguments, prints answers, gives exit codes.

0 fine, 1 the answer is no (``check`` found a fault, ``--once`` saw nothing to meter), 2 could not start or answer, 75 left to be
restarted by the service manager.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from collector import config, logs
from collector.agent import SIGNALS
from collector.check import check
from collector.clock import Clock, SystemClock
from collector.config import Loaded
from collector.errors import AgentError, LibraryReplacedError
from collector.look import DURATION_S
from collector.once import Style, pretty
from collector.run import Runner, look_around, open_client

EXIT_OK: Final = 0
EXIT_NO: Final = 1
EXIT_FAILED: Final = 2
EXIT_RESTART: Final = 75  # EX_TEMPFAIL: systemd and Kubernetes start a new process, which loads the new driver library

_EXAMPLES: Final = """\
examples:
  wattledger-agent --once --pretty                 what this node shows and hides, and what would add more
  wattledger-agent check --config agent.toml       would it run here: driver, spool, server, token
  wattledger-agent enroll --server-url https://ledger.example.org --join-token-file join.token
  wattledger-agent run --config agent.toml         run until SIGTERM
  wattledger-agent --print-config --row-s 60       every setting with its value and where it comes from
  wattledger-agent run --replay trace.jsonl --server-url http://127.0.0.1:8710

Each setting is also a key of the TOML file and, in capitals, an environment variable: WATTLEDGER_AGENT_SPOOL_PATH.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    environ = os.environ
    path = options.config or environ.get(config.ENV_PREFIX + "CONFIG")
    flags = {name: getattr(options, name) for name in config.FIELDS}
    try:

        def load() -> Loaded:
            return config.load(Path(path) if path else None, environ, flags)

        loaded = load()
        if options.print_config:
            print(loaded.describe())
            return EXIT_OK
        return _command(options, loaded, load)
    except BrokenPipeError:
        # Whoever read our answer has seen enough (`| head`); what Python still holds of it must not raise at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except LibraryReplacedError as error:
        print(f"wattledger-agent: {error}", file=sys.stderr)
        return EXIT_RESTART
    except AgentError as error:
        print(f"wattledger-agent: {error}", file=sys.stderr)
        return EXIT_FAILED


def _command(options: argparse.Namespace, loaded: Loaded, load: Callable[[], Loaded]) -> int:
    logs.start(loaded.settings.log_level)
    replay = Path(options.replay) if options.replay else None
    stop = threading.Event()
    clock = SystemClock(stop)
    if options.once:
        return _once(loaded, clock, stop, replay, in_words=options.pretty)
    if options.command == "enroll":
        return _enroll(options, loaded)
    if options.command == "check":
        answers = check(loaded.settings, clock)
        for answer in answers:
            print(answer)
        return EXIT_OK if all(answer.fine for answer in answers) else EXIT_NO
    os.umask(0o077)  # what it keeps, and the files SQLite makes beside it, are this user's alone
    Runner(loaded.settings, lambda: load().settings, replay=replay).run(SIGNALS)
    return EXIT_OK


def _enroll(options: argparse.Namespace, loaded: Loaded) -> int:
    from collector.enrol import enroll  # noqa: PLC0415  once in the life of a node

    settings = loaded.settings
    if not settings.server_url or not options.join_token_file:
        raise AgentError("enroll needs --server-url and --join-token-file")
    with open_client(settings) as client:
        target = enroll(settings, client, Path(options.join_token_file))
    print(f'{settings.node} has joined; its token is in {target}. Set token_file = "{target}" and start the agent.')
    return EXIT_OK


def _once(loaded: Loaded, clock: Clock, stop: threading.Event, replay: Path | None, *, in_words: bool) -> int:
    if in_words and sys.stderr.isatty():
        print(f"looking around for {DURATION_S:g} s ...", end="\r", file=sys.stderr, flush=True)
    logging.getLogger("collector").setLevel(logging.ERROR)  # what is missing is on the page, with what to do about it
    seen = look_around(loaded.settings, clock, stop, replay=replay)
    print(pretty(seen, Style(sys.stdout, os.environ)) if in_words else json.dumps(seen.to_json(), indent=2))
    return EXIT_OK if seen.measurable else EXIT_NO


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wattledger-agent",
        usage="%(prog)s [run | check | enroll] [--once [--pretty]] [--config FILE] [--SETTING VALUE ...]",
        description="Measures the GPUs of this node and ships what it measured to a Wattledger server.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "command", nargs="?", choices=("run", "check", "enroll"), default="run", help="what to do (default: run)"
    )
    parser.add_argument("--join-token-file", metavar="FILE", help="with enroll: file that holds the join token")
    parser.add_argument("--once", action="store_true", help="look around, print it as JSON, keep and send nothing")
    parser.add_argument("--pretty", action="store_true", help="with --once: as a page for people")
    parser.add_argument("--replay", metavar="FILE", help="read a recorded trace (CSV or JSON lines) instead of devices")
    parser.add_argument("--print-config", action="store_true", help="print each setting with its origin and exit")
    parser.add_argument("--config", metavar="FILE", help=f"TOML file (also {config.ENV_PREFIX}CONFIG)")
    group = parser.add_argument_group("settings")
    for name, entry in config.FIELDS.items():
        flags = ["--" + name.replace("_", "-"), *(["--server"] if name == "server_url" else [])]
        explanation = f"{entry.metadata['help']} (default: {entry.default!r})".replace("%", "%%")
        if isinstance(entry.default, bool):
            group.add_argument(*flags, action=argparse.BooleanOptionalAction, default=None, help=explanation)
        else:
            group.add_argument(*flags, metavar="VALUE", help=explanation)
    return parser
