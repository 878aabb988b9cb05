"""What is stored, encrypted: AES-256-GCM under keys with ids, the first of which encrypts, and all of which decrypt.

Stored is a salt, a nonce, and the ciphertext with its tag. The key itself encrypts nothing: each process draws a salt, and
encrypts under what it derives from key and salt. For nonces of 96 bits are drawn by chance, and under one key that is
good for 2^32 values (NIST SP 800-38D), which this ledger can take in a day; so it is good for as many per salt.

Authenticated beside the value is the key's id, and neither the workflow nor the place that the value stands in: a fork
copies arguments and records to another workflow, a result goes into its parent's record, and the database does both
without the key. So whoever may write there can put one encrypted value in another's place, or an older one back; what he
cannot is read one, or make one.
"""

import hmac
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import import_module
from typing import cast

from eventflow.errors import SettingsError, UnreadableError, first_line
from eventflow.payloads import PayloadCodec
from eventflow.settings import CODEC_MEMBERS, Settings, key_bytes

_SALT, _NONCE = 16, 12  # bytes
_RENEW = 1 << 28  # values under one salt; a few more do no harm, so nobody counts exactly
_CIPHERS = 4096  # of as many processes' salts they are kept


class AesGcm:
    """A payload codec that encrypts under the first of its keys, and decrypts under any of them.

    `EVENTFLOW_ENCRYPTION_KEYS` makes one; where keys come from a vault, a program does, for `Settings(payload_codec=...)`.
    """

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        """By their ids, 32 bytes each.

        Raises:
            SettingsError: no key, one of another length, or `cryptography` is not installed.

        """
        try:
            from cryptography.exceptions import InvalidTag
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError:
            raise SettingsError('encryption needs cryptography: pip install "eventflow[encryption]"') from None
        if not keys or any(len(key) != 32 for key in keys.values()):
            raise SettingsError("encryption needs keys, and each has 32 bytes")
        self._keys = dict(keys)
        self._first = next(iter(keys))
        self._secrets = [hmac.digest(key, b"eventflow digests", "sha256") for key in keys.values()]
        self._invalid = InvalidTag

        def cipher(name: str, salt: bytes) -> AESGCM:
            return AESGCM(hmac.digest(self._keys[name], b"eventflow payloads, AES-256-GCM" + salt, "sha256"))

        self._cipher = lru_cache(_CIPHERS)(cipher)
        self._renew()

    def __repr__(self) -> str:
        return f"AesGcm({', '.join(self._keys)})"

    def _renew(self) -> None:
        salt = os.urandom(_SALT)
        self._current = salt, self._cipher(self._first, salt)
        self._left = _RENEW

    @property
    def secrets(self) -> Sequence[bytes]:
        """What digests are keyed with, by each key."""
        return self._secrets

    def encode(self, payload: bytes, /) -> tuple[str, bytes]:
        """The first key's id, and the payload encrypted under it."""
        if self._left <= 0:
            self._renew()
        self._left -= 1
        salt, cipher = self._current
        nonce = os.urandom(_NONCE)
        return self._first, b"".join((salt, nonce, cipher.encrypt(nonce, payload, _bound(self._first))))

    def decode(self, label: str, stored: bytes, /) -> bytes:
        """The payload, decrypted under the key of this id.

        Raises:
            UnreadableError: there is no such key, or this is not what was encrypted under it.

        """
        if label not in self._keys:
            have = ", ".join(map(repr, self._keys))
            raise UnreadableError(
                f"it is stored under the key {label!r}, which this process does not have; it has {have}"
            )
        salt, nonce, encrypted = stored[:_SALT], stored[_SALT : _SALT + _NONCE], stored[_SALT + _NONCE :]
        try:
            return self._cipher(label, salt).decrypt(nonce, encrypted, _bound(label))
        except (self._invalid, ValueError):
            raise UnreadableError(
                f"it is stored under the key {label!r}, and was changed, or that key is another one here"
            ) from None


def _bound(label: str) -> bytes:
    return b"eventflow 1 " + label.encode()


def codec_of(settings: Settings) -> PayloadCodec | None:
    """The payload codec that the settings choose; None where values are stored as they are.

    Raises:
        SettingsError: it cannot be had, and why.

    """
    if settings.encryption_keys:
        return AesGcm({name: key_bytes(key.get_secret_value()) for name, key in settings.encryption_keys.items()})
    chosen = settings.payload_codec
    return cast("PayloadCodec | None", _imported(chosen) if isinstance(chosen, str) else chosen)


def _imported(place: str) -> object:
    module, _, name = place.partition(":")
    try:
        codec = getattr(import_module(module), name)
    except Exception as error:  # it is the program's own, and may raise anything
        raise SettingsError(
            f"EVENTFLOW_PAYLOAD_CODEC: {place!r}: {type(error).__name__}: {first_line(error)}"
        ) from error
    missing = [member for member in CODEC_MEMBERS if not hasattr(codec, member)]
    if missing:
        raise SettingsError(f"EVENTFLOW_PAYLOAD_CODEC: {place!r} is no payload codec: it has no {missing[0]!r}")
    return codec
