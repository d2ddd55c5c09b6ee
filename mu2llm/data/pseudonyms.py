"""Pseudonyms: keyed hashes in place of patient ids, study ids and UIDs (HMAC-SHA-256).

The same key gives the same pseudonym, so that data ingested again or later falls under the same names.
Without the key nobody can compute or check one, so the key is as secret as the names themselves.
"""

import hashlib
import hmac
import os
import uuid
from dataclasses import dataclass, field
from pathlib import Path

KEY, KEY_FILE = "MU2_DEID_KEY", "MU2_DEID_KEY_FILE"
LEAST = 32  # characters


@dataclass(frozen=True)
class Pseudonyms:
    """Makes pseudonyms with one key, which no message or representation shows."""

    secret: bytes = field(repr=False)

    def patient(self, patient_id: str) -> str:
        """p- and 16 hexadecimal digits."""
        return f"p-{self._digest('patient', patient_id).hex()[:16]}"

    def study(self, study_id: str) -> str:
        """s- and 16 hexadecimal digits."""
        return f"s-{self._digest('study', study_id).hex()[:16]}"

    def uid(self, uid: str) -> str:
        """A UID below 2.25, the arc of UUIDs (PS3.5 B.2)."""
        return f"2.25.{uuid.UUID(bytes=self._digest('uid', uid)[:16], version=5).int}"

    def source(self, place: str) -> str:
        """16 hexadecimal digits that tell one place of data from another."""
        return self._digest("source", place).hex()[:16]

    @property
    def fingerprint(self) -> str:
        """Tells one key from another, and gives neither away."""
        return self._digest("fingerprint", "").hex()[:8]

    def _digest(self, kind: str, value: str) -> bytes:
        return hmac.digest(self.secret, f"{kind}\0{value.strip()}".encode(), hashlib.sha256)


def read_key(key_file: str | Path | None = None) -> Pseudonyms:
    """The key of `key_file`, else of the file that MU2_DEID_KEY_FILE names, else MU2_DEID_KEY itself.

    Raises ValueError when there is none, when both variables are set, or when it is too short to be one.
    """
    if key_file is None and os.environ.get(KEY) and os.environ.get(KEY_FILE):
        raise ValueError(f"{KEY} and {KEY_FILE} are both set; keep one")
    place = key_file or os.environ.get(KEY_FILE)
    if place:
        try:
            text, origin = Path(place).read_text(encoding="utf-8").strip(), str(place)
        except UnicodeDecodeError:
            raise ValueError(f"{place}: not text; write a key with: openssl rand -hex 32") from None
    else:
        text, origin = os.environ.get(KEY, "").strip(), KEY
    if not text:
        where = f"{place} is empty" if place else f"neither {KEY} nor {KEY_FILE} is set"
        raise ValueError(
            f"de-identification needs a key, and {where}; make one with `openssl rand -hex 32 > FILE`, keep "
            f"it as secret as the patients' names, and give it with --key-file FILE or {KEY_FILE}=FILE"
        )
    if len(text) < LEAST or len(set(text)) < 8:
        raise ValueError(
            f"{origin}: a key needs {LEAST} random characters or more; make one with: openssl rand -hex 32"
        )
    return Pseudonyms(text.encode())
