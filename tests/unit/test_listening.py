"""Where the service may listen, and a certificate that is renewed while it serves."""

from __future__ import annotations

import ssl
from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from wattledger.listening import Certificates, Listening, ListeningError


def written(folder: Path, ca: trustme.CA, name: str = "server") -> Listening:
    """The settings of a certificate for 127.0.0.1 in ``folder``."""
    issued = ca.issue_cert("127.0.0.1", "localhost")
    cert, key = folder / f"{name}.crt", folder / f"{name}.key"
    cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    return Listening("0.0.0.0", 8470, cert, key)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_nothing(host: str) -> None:
    Listening(host).check()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "gpu.example", "2001:db8::1"])
def test_another_address_needs_tls_or_a_word_that_a_proxy_has_it(host: str) -> None:
    with pytest.raises(ListeningError, match="tokens in the clear; give --tls-cert and --tls-key, or --behind-proxy"):
        Listening(host).check()
    Listening(host, behind_proxy=True).check()


def test_contradictions_and_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    good, other = written(tmp_path, trustme.CA()), written(tmp_path, trustme.CA(), "other")
    good.check()
    for bad, said in (
        (replace(good, key=None), "go together"),
        (Listening(client_ca=tmp_path / "ca"), "needs --tls-cert"),
        (replace(good, behind_proxy=True), "leave out --tls-cert, or it"),
        (replace(good, cert=tmp_path / "none"), "No such file"),
        (replace(good, key=other.key), "(?i)key.values.mismatch"),
        (replace(good, client_ca=good.key), "--client-ca"),
    ):
        with pytest.raises(ListeningError, match=said):
            bad.check()


def test_old_versions_of_tls_are_not_spoken(tmp_path: Path) -> None:
    context = written(tmp_path, trustme.CA()).context()
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.verify_mode is ssl.CERT_NONE
    asking = replace(written(tmp_path, trustme.CA()), client_ca=written(tmp_path, trustme.CA()).cert).context()
    assert asking.verify_mode is ssl.CERT_REQUIRED


def test_a_renewed_certificate_is_loaded_once_and_a_broken_one_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certificates = Certificates.of(written(tmp_path, trustme.CA()))
    assert not certificates.reload()
    whole = written(tmp_path, trustme.CA()).cert
    assert certificates.reload()
    assert not certificates.reload()
    assert whole is not None
    whole.write_text("half a file")
    assert not certificates.reload()
    assert "the renewed certificate is not used, the former one is" in caplog.text
    whole.unlink()
    assert not certificates.reload()
    written(tmp_path, trustme.CA())
    assert certificates.reload()


def test_its_words_are_the_options_of_serve() -> None:
    said = Listening("10.0.0.5", 1, Path("/c"), Path("/k"), Path("/a"), internal_port=2).words()
    assert " ".join(said) == ("--host 10.0.0.5 --port 1 --tls-cert /c --tls-key /k --client-ca /a --internal-port 2")
    assert Listening("::", 1, behind_proxy=True).words() == ["--host", "::", "--port", "1", "--behind-proxy"]
