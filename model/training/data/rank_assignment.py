"""Distributes the packs of a step over ranks and forward passes."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.packing.plan import Pack


@dataclass(frozen=True)
class PackAssignment:
    """Assigns the `global_batch` packs of a step to ranks by length, in serpentine order, so that all ranks have about
    the same number of tokens. The packs of a step do not depend on the ranks. micro_batch: packs per forward pass."""

    global_batch: int
    micro_batch: int
    rank: int = 0
    ranks: int = 1

    def own(self, packs: Sequence[Pack]) -> list[list[Pack]]:
        """Returns this rank's packs of a step, one list per forward pass; a pass has packs of similar length."""
        by_length = sorted(packs, key=lambda pack: (-pack.tokens, pack.samples[0]))
        mine = []
        for index, pack in enumerate(by_length):
            round_, rank = divmod(index, self.ranks)
            if self.rank == (rank if round_ % 2 == 0 else self.ranks - 1 - rank):
                mine.append(pack)
        return [mine[at : at + self.micro_batch] for at in range(0, len(mine), self.micro_batch)]
