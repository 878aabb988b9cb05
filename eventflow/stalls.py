"""Partitions that hold more and of which nothing comes, although all is well: librdkafka may fetch one no more. Pure.

Its issues 4492 and 5153 tell of such: the consumer is a member, its brokers answer, others of its partitions are read, and no
error is told. Seen by where the leaders say that the logs end, asked now and then; what mends it is a consumer that is new.
"""

from collections.abc import Iterable, Mapping

from eventflow.runs import Claim

_LOOKS = 2  # at which it has not moved, after the one at which there was more of it
_MOST = 40  # the same, where to begin anew has not helped
_IDLE = 20  # times that there was nothing to take, between two looks: nothing that was fetched is waiting here


class Stalls:
    """What stands still of one consumer."""

    def __init__(self) -> None:
        self._stood: dict[Claim, tuple[int, int]] = {}  # where, and at how many looks
        self._idle = 0
        self._looks = _LOOKS

    def nothing_came(self) -> None:
        """There was nothing to take, of any partition."""
        self._idle += 1

    def interrupted(self) -> None:
        """Nothing was to come: all was paused."""
        self._stood.clear()
        self._idle = 0

    def look(self, claims: Iterable[Claim], ends: Mapping[tuple[str, int], int]) -> list[Claim]:
        """Those that have stood still for too long, by where their logs end now; of none it is said twice in a row so soon."""
        idle, self._idle = self._idle >= _IDLE, 0
        if not idle:
            return []
        before, self._stood = self._stood, {}
        for claim in claims:
            if _holds_more(claim, ends.get((claim.topic, claim.partition), -1)):
                offset, looks = before.get(claim, (-1, 0))
                self._stood[claim] = claim.next_offset, looks + 1 if offset == claim.next_offset else 1
        stalled = [claim for claim, (_, looks) in self._stood.items() if looks > self._looks]
        if stalled:
            self._looks = min(2 * self._looks, _MOST)
        elif not self._stood:
            self._looks = _LOOKS
        return stalled


def _holds_more(claim: Claim, end: int) -> bool:
    """Whether something of it is to come, be it that its log ends there, and is in nobody's hands yet."""
    above = claim.accepted_above  # what is beyond the log's end says that it was cut off
    return claim.in_flight() == 0 and end > claim.next_offset and (not above or above[0][0] <= end)
