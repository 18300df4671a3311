"""Ed25519 keys that sign what a month came to: the secret half lies in a file of whoever closes months, never in the database.

It makes, reads and uses keys; what is signed is the caller's. PEM files, so that `openssl pkeyutl -verify` can check a signature too.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from analytics.errors import CloseError

_OTHERS: Final = 0o077
_ID_DIGITS: Final = 16


@dataclass(frozen=True, slots=True)
class Signed:
    """A signature, and which key made it."""

    signature: bytes
    key_id: str
    public_pem: str


def make_key(path: Path) -> Path:
    """Write a new secret key, for its owner's eyes alone, and the public one beside it as ``.pub``; return the latter's path.

    Raises CloseError where either is there already: a key that signed something is never written over.
    """
    public = path.with_name(f"{path.name}.pub")
    for file in (path, public):
        if file.exists():
            raise CloseError(f"{file} is there already; name another file, a key is never written over")
    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(secret)
    public.write_text(_pem(key.public_key()))
    return public


def read_key(path: Path) -> Ed25519PrivateKey:
    """Return a secret key; raises CloseError for what is none, or what others may read."""
    try:
        mode, content = path.stat().st_mode, path.read_bytes()
    except OSError as error:
        raise CloseError(
            f"cannot read the key {path}: {error.strerror}; make one with `wattledger close keygen`"
        ) from None
    if mode & _OTHERS:
        raise CloseError(f"{path} can be read by others; make it yours alone: chmod 600 {path}")
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError):
        raise CloseError(f"{path} is no unencrypted PEM key; make one with `wattledger close keygen`") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise CloseError(f"{path} is no Ed25519 key; make one with `wattledger close keygen`")
    return key


def read_public_key(path: Path) -> Ed25519PublicKey:
    """Return a public key; raises CloseError for what is none."""
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise CloseError(f"cannot read the public key {path}: {error.strerror}") from None
    except (ValueError, TypeError):
        raise CloseError(f"{path} is no PEM public key; `wattledger close keygen` wrote it as KEY.pub") from None
    if not isinstance(key, Ed25519PublicKey):
        raise CloseError(f"{path} is no Ed25519 public key")
    return key


def sign(key: Ed25519PrivateKey, message: bytes) -> Signed:
    public = key.public_key()
    return Signed(key.sign(message), key_id(public), _pem(public))


def holds(key: Ed25519PublicKey, signature: bytes, message: bytes) -> bool:
    """Say whether the key's owner signed exactly this."""
    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def key_id(key: Ed25519PublicKey) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of the raw public key."""
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()[:_ID_DIGITS]


def _pem(key: Ed25519PublicKey) -> str:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
