"""Partitions that hold more and of which nothing comes, although all is well: librdkafka may fetch one no more. Pure.

Its issues 4492 and 5153 tell of such: the consumer is a member, its brokers answer, others of its partitions are read, and no
error is told. Seen by where the leaders say that the logs end, asked now and then; what mends it is a consumer that is new.
"""

from collections.abc import Iterable, Mapping

from eventflow.runs import Claim

_LOOKS = 3  # at which it has more and has not moved since the first of them
_MOST = 40  # the same, where to begin anew has not helped
_OPEN = 10.0  # seconds for which all could be fetched before a look counts


class Stalls:
    """What stands still of one consumer. Times are those of one clock, in seconds."""

    def __init__(self) -> None:
        self._stood: dict[Claim, tuple[int, int]] = {}  # where, and at how many looks
        self._open_since = self._drained_at = float("-inf")
        self._looks, self._clean = _LOOKS, 0

    def held_back(self, now: float) -> None:
        """Nothing was to come: all was paused, the consumer is new, or a broker said that it answers late (a quota)."""
        self._open_since = now

    def drained(self, now: float) -> None:
        """All that was fetched has been taken, of any partition."""
        self._drained_at = now

    def look(self, claims: Iterable[Claim], ends: Mapping[tuple[str, int], int]) -> list[Claim]:
        """Those that have stood still for too long, by where their logs end now.

        A look counts where everything has been taken that came since the last one, and nothing was held back before that.
        Once it has told of any it wants twice as many looks, until none has stood still at twice those: a partition that a new
        consumer does not read, either, may have gone to another process, and comes back.
        """
        counts, self._drained_at = self._drained_at - self._open_since >= _OPEN, float("-inf")
        if not counts:
            return []
        before, self._stood = self._stood, {}
        for claim in claims:
            if _holds_more(claim, ends.get((claim.topic, claim.partition), -1)):
                offset, looks = before.get(claim, (-1, 0))
                self._stood[claim] = claim.next_offset, looks + 1 if offset == claim.next_offset else 1
        stalled = [claim for claim, (_, looks) in self._stood.items() if looks >= self._looks]
        self._clean = 0 if self._stood else self._clean + 1
        if stalled:
            self._looks = min(2 * self._looks, _MOST)
        elif self._clean >= 2 * self._looks:
            self._looks = _LOOKS
        return stalled


def _holds_more(claim: Claim, end: int) -> bool:
    """Whether its log holds more than was read, and nothing of it is in flight."""
    above = claim.accepted_above  # one beyond the log's end says that this was cut off
    return claim.in_flight() == 0 and end > claim.next_offset and (not above or above[0][0] <= end)
