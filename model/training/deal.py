"""Which packs of a step each rank takes, in which forward pass."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.packing import Pack


@dataclass(frozen=True)
class Deal:
    """A step is `global_batch` packs. They are dealt by length, there and back over the ranks, so that all ranks have
    about as many tokens; which packs a step has does not depend on the ranks. micro_batch: packs of a forward pass."""

    global_batch: int
    micro_batch: int
    rank: int = 0
    ranks: int = 1

    def own(self, packs: Sequence[Pack]) -> list[list[Pack]]:
        """This rank's packs of a step, one list per forward pass; packs of like length are in the same pass."""
        by_length = sorted(packs, key=lambda pack: (-pack.tokens, pack.samples[0]))
        mine = []
        for place, pack in enumerate(by_length):
            turn, seat = divmod(place, self.ranks)
            if self.rank == (seat if turn % 2 == 0 else self.ranks - 1 - seat):
                mine.append(pack)
        return [mine[at : at + self.micro_batch] for at in range(0, len(mine), self.micro_batch)]
