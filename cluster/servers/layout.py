"""Which primary owns which hash slots. No I/O happens here."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from socketspec.cluster.options import Address

__all__ = ("NOBODY", "Layout")


class Layout(NamedTuple):
    """Who owns which slots: `owners[i]` has those from `starts[i]` up to the next start. `starts[0]` is 0."""

    starts: Sequence[int]
    owners: Sequence[Address | None]

    @classmethod
    def of_one(cls, address: Address) -> Layout:
        """One server has them all."""
        return cls((0,), (address,))

    @classmethod
    def of_ranges(cls, ranges: Sequence[tuple[int, int, Address]]) -> Layout:
        """From the first and the last slot of each range, and its owner."""
        starts: list[int] = []
        owners: list[Address | None] = []
        following = 0
        for first, last, address in sorted(ranges):
            if first > following:
                starts.append(following)
                owners.append(None)
            starts.append(first)
            owners.append(address)
            following = last + 1
        if following < REDIS_CLUSTER_HASH_SLOTS:
            starts.append(following)
            owners.append(None)
        return cls(starts, owners)

    @classmethod
    def of_slots(cls, reply: Sequence[Sequence[Any]], told_by: Address) -> Layout:
        """From the reply of `told_by` to ``CLUSTER SLOTS``. A node without a host in it is the one that was asked."""
        return cls.of_ranges(
            [(int(first), int(last), _address(primary, told_by)) for first, last, primary, *_ in reply]
        )

    def owner(self, key: bytes) -> Address | None:
        """Who owns the slot of this key or sharded channel."""
        if len(self.owners) == 1:
            return self.owners[0]
        return self.owners[bisect_right(self.starts, key_slot(key)) - 1]

    def covered(self) -> int:
        """How many slots have an owner."""
        ends = [*self.starts[1:], REDIS_CLUSTER_HASH_SLOTS]
        return sum(end - start for start, end, owner in zip(self.starts, ends, self.owners, strict=True) if owner)


NOBODY: Final = Layout((0,), (None,))
"""No slot has an owner."""


def _address(node: Sequence[Any], told_by: Address) -> Address:
    host = b"" if node[0] is None else node[0]
    return Address(told_by.host if host in (b"", b"?") else host.decode(), int(node[1]))
