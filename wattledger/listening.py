"""Where the service listens and who ends TLS: checked before anything starts, and the certificates watched while it runs.

Refuses to send tokens over a network in the clear: an address that is not loopback needs a certificate, or a word that a
proxy in front has one. It knows nothing of routes.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from wattledger.errors import NotReadyError

_LOG = logging.getLogger(__name__)
LOOPBACK: Final = "127.0.0.1"
RELOAD_EVERY_S: Final = 30.0


class ListeningError(NotReadyError):
    """The service must not, or cannot, listen as it was told."""


@dataclass(frozen=True, slots=True)
class Listening:
    """An address, and how it is protected. ``internal_port``: plain HTTP on loopback beside TLS, for this machine; 0 = none."""

    host: str = LOOPBACK
    port: int = 0
    cert: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    behind_proxy: bool = False
    internal_port: int = 0

    @property
    def is_tls(self) -> bool:
        return self.cert is not None

    @property
    def is_loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:  # a name: where it leads may change
            return False

    def check(self) -> None:
        """Raise ListeningError where options contradict each other, a certificate cannot be used, or tokens would be bare."""
        if (self.cert is None) != (self.key is None):
            raise ListeningError("--tls-cert and --tls-key go together; give both or none")
        if self.client_ca is not None and self.cert is None:
            raise ListeningError("--client-ca asks clients for certificates, which needs --tls-cert and --tls-key")
        if self.cert is not None and self.behind_proxy:
            raise ListeningError("--behind-proxy says that TLS ends before this service; leave out --tls-cert, or it")
        if not self.is_loopback and not self.is_tls and not self.behind_proxy:
            raise ListeningError(
                f"{self.host} can be reached from other machines, and without TLS they would send their tokens in the clear; "
                "give --tls-cert and --tls-key, or --behind-proxy where a proxy in front ends TLS"
            )
        if self.is_tls:
            self.context()

    def words(self) -> list[str]:
        """Return the options of `wattledger serve` that say this."""
        said = ["--host", self.host, "--port", str(self.port)]
        for option, path in (("--tls-cert", self.cert), ("--tls-key", self.key), ("--client-ca", self.client_ca)):
            said += [option, str(path)] if path is not None else []
        if self.internal_port:
            said += ["--internal-port", str(self.internal_port)]
        return [*said, "--behind-proxy"] if self.behind_proxy else said

    def context(self) -> ssl.SSLContext:
        """Return a server's context, TLS 1.2 or newer; raises ListeningError with the file that cannot be used."""
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.minimum_version = ssl.TLSVersion.TLSv1_2
        made.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        made.set_alpn_protocols(["http/1.1"])
        try:
            self.load_into(made)
        except (OSError, ssl.SSLError) as error:
            raise ListeningError(
                f"TLS cannot be served with --tls-cert {self.cert}, --tls-key {self.key}"
                f"{'' if self.client_ca is None else f', --client-ca {self.client_ca}'}: {error}"
            ) from error
        return made

    def load_into(self, context: ssl.SSLContext) -> None:
        """Make a context serve the files as they are now; raises OSError and ssl.SSLError where they cannot be used."""
        if self.cert is None:
            raise ListeningError("there is no certificate to serve TLS with")
        # An encrypted key is refused rather than asked about: nobody sits at a service's terminal.
        context.load_cert_chain(self.cert, self.key, password=_no_password)
        if self.client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.client_ca)

    def stamp(self) -> tuple[tuple[int, int, int], ...]:
        """Return what changes when one of the files does."""
        stats = [path.stat() for path in (self.cert, self.key, self.client_ca) if path is not None]
        return tuple((stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in stats)


def _no_password() -> str:
    raise ssl.SSLError("the key is encrypted; give it without a pass phrase, readable by the service's user alone")


@dataclass(slots=True)
class Certificates:
    """A context that follows its files: a renewed certificate is served to whoever connects next, without a restart."""

    listening: Listening
    context: ssl.SSLContext
    _loaded: tuple[tuple[int, int, int], ...] = field(default=())

    @classmethod
    def of(cls, listening: Listening) -> Certificates:
        return cls(listening, listening.context(), listening.stamp())

    def reload(self) -> bool:
        """Load changed files; say whether that was done. What cannot be used is logged and the former goes on."""
        try:
            stamp = self.listening.stamp()
            if stamp == self._loaded:
                return False
            self.listening.context()  # tried on another first: the one that serves is never left half changed
            self.listening.load_into(self.context)
        except (OSError, ssl.SSLError, ListeningError) as error:
            _LOG.error("the renewed certificate is not used, the former one is: %s", error)
            return False
        self._loaded = stamp
        _LOG.info("the certificate %s was renewed and is served from now on", self.listening.cert)
        return True

    @asynccontextmanager
    async def followed(self, every_s: float = RELOAD_EVERY_S) -> AsyncIterator[None]:
        """Look at the files every ``every_s`` as long as the block lasts."""
        task = asyncio.create_task(self._follow(every_s))
        try:
            yield
        finally:
            task.cancel()

    async def _follow(self, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            await asyncio.to_thread(self.reload)
