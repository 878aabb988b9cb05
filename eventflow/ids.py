"""Random ids, of workflows that nobody named."""

import os
from collections.abc import Iterator


class _Ids:
    """Random UUIDs (version 4) as text, many by one call of the system: each call gives the interpreter lock away."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """After a fork, what is left is the parent's."""
        self._made: Iterator[str] = iter(())

    def next(self) -> str:
        while True:
            for made in self._made:  # of a list: one operation, whichever thread asks
                return made
            drawn = os.urandom(16 * 256).hex()
            self._made = iter([_uuid(drawn[at : at + 32]) for at in range(0, len(drawn), 32)])


def _uuid(drawn: str) -> str:
    variant = "89ab"[int(drawn[16], 16) & 3]
    return f"{drawn[:8]}-{drawn[8:12]}-4{drawn[13:16]}-{variant}{drawn[17:20]}-{drawn[20:]}"


_ids = _Ids()
os.register_at_fork(after_in_child=_ids.forget)
new_id = _ids.next
