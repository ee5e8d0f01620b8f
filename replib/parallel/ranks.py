"""Ranks that each hold a part of a sequence, and the ways in which they tell one another what the
parts before theirs have left behind.

W ranks, the first of which holds the first part. A pass of a layer, forward or backward, is one
scan: every rank gives what its part does (`Effect`), and gets the state before it. Backward, the
parts are taken from the last to the first: with G_r the gradient by the state before part r, what
the later parts want of the state after part r is a scan of the maps S -> A_rᵀ S + G_r; of linear
attention the sum of all later G (Sun et al. 2024, *Linear Attention Sequence Parallelism*).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from replib.parallel.states import Effect


@dataclass
class Traffic:
    """What went from rank to rank since it was reset: bytes and messages that left this rank (of
    virtual ranks, all of them), and seconds spent sending, receiving and waiting."""

    sent_bytes: int = 0
    messages: int = 0
    seconds: float = 0.0

    def reset(self) -> None:
        self.sent_bytes, self.messages, self.seconds = 0, 0, 0.0

    def count(self, *tensors: Tensor, times: int = 1) -> None:
        """That tensors are sent so many times, in one message each time."""
        self.sent_bytes += times * sum(x.nbytes for x in tensors)
        self.messages += times


class Ranks:
    """W ranks, and which of them this process is: `held` are the parts that it has.

    Raises:
        ValueError: there is no rank.
    """

    label: str
    """What charts call this way to communicate."""

    def __init__(self, size: int, held: Sequence[int]):
        if size < 1:
            raise ValueError(f"{size} ranks: use at least 1")
        self.size, self.held, self.traffic = size, tuple(held), Traffic()

    def part(self, seq_len: int) -> slice:
        """The positions of a sequence that this process holds; the parts of all ranks are as long
        as one another, but for one position.

        Raises:
            ValueError: a rank would hold no token.
        """
        cuts = boundaries(seq_len, self.size)
        return slice(cuts[self.held[0]], cuts[self.held[-1] + 1])

    def scan(self, effects: Sequence[Effect], *, backward: bool = False) -> list[Tensor]:
        """The states before the parts held, one of each; backward, parts come in the other order,
        and what is returned is that of the parts after them."""
        raise NotImplementedError

    def total(self, x: Tensor) -> Tensor:
        """The sum of a tensor over all ranks, which is not counted as traffic of a scan."""
        raise NotImplementedError

    def check_same(self, **facts: str) -> None:
        """That all ranks call it with the same facts, which is not counted as traffic of a scan.
        Facts that they have agreed on are not sent again.

        Raises:
            ValueError: on all ranks, where a rank has others than the first.
        """


def boundaries(seq_len: int, size: int) -> list[int]:
    """Where the parts of a sequence begin, and where the last ends: W + 1 positions.

    Raises:
        ValueError: a rank would hold no token.
    """
    if seq_len == 0:
        raise ValueError("a sequence without a token has no parts: use one token a rank or more")
    if not 1 <= size <= seq_len:
        raise ValueError(
            f"{seq_len} tokens over {size} ranks leave a rank without one: "
            f"use 1 to {seq_len} ranks, or a longer sequence"
        )
    return [-(-seq_len * i // size) for i in range(size + 1)]


class VirtualRanks(Ranks):
    """W ranks in this process, one after the other, which count what a ring would send."""

    label = "virtual"

    def __init__(self, size: int):
        super().__init__(size, range(size))

    def scan(self, effects, *, backward=False):
        order = range(self.size)[:: -1 if backward else 1]
        states, state = {}, torch.zeros_like(effects[0].write)
        for i in order:
            states[i] = state
            state = effects[i].on(state)
            if i != order[-1]:
                self.traffic.count(state)
        return [states[i] for i in range(self.size)]

    def total(self, x):
        return x


class ProcessRanks(Ranks):
    """A rank of torch.distributed's default group, which has been initialised: gloo on the CPU,
    nccl on CUDA."""

    def __init__(self):
        from torch import distributed

        self.distributed = distributed
        self.rank = distributed.get_rank()
        super().__init__(distributed.get_world_size(), (self.rank,))
        self._agreed: set[tuple[tuple[str, str], ...]] = set()

    def scan(self, effects, *, backward=False):
        (effect,) = effects
        began = time.perf_counter()
        state = self._state(effect, -1 if backward else 1)
        if state.is_cuda:
            torch.cuda.synchronize(state.device)
        self.traffic.seconds += time.perf_counter() - began
        return [state]

    def _state(self, effect: Effect, step: int) -> Tensor:
        """That before the part of this rank, where the next rank is `step` away."""
        raise NotImplementedError

    def total(self, x):
        x = x.clone()
        self.distributed.all_reduce(x)
        return x

    def check_same(self, **facts):
        known = tuple(facts.items())
        if known in self._agreed:
            return
        told = [facts] * self.size
        self.distributed.all_gather_object(told, facts)
        differ = [
            f"{name} is {told[0][name]} on rank 0 and {other[name]} on rank {rank}"
            for rank, other in enumerate(told)
            for name in facts
            if other[name] != told[0][name]
        ]
        if differ:
            raise ValueError(f"{'; '.join(differ)}: use the same on all ranks")
        self._agreed.add(known)


class Ring(ProcessRanks):
    """Each rank waits for the state of the one before it, takes it over its own part, and passes it
    on (LASP, Sun et al. 2024). Only states travel: W - 1 messages of S, one after the other."""

    label = "ring"

    def _state(self, effect, step):
        before, after = self.rank - step, self.rank + step
        state = torch.zeros_like(effect.write, memory_format=torch.contiguous_format)
        if 0 <= before < self.size:
            self.distributed.recv(state, before)
        if 0 <= after < self.size:
            message = effect.on(state).contiguous()
            self.distributed.send(message, after)
            self.traffic.count(message)
        return state


class AllGather(ProcessRanks):
    """All ranks give all others what their parts do, at once, and each takes the maps of the ranks
    before it together (LASP-2, Sun et al. 2025). W (W - 1) messages; of the delta rule A travels as
    well as B."""

    label = "all-gather"

    def _state(self, effect, step):
        given = [x.contiguous() for x in (effect.write, effect.keep) if x is not None]
        gathered = [[torch.empty_like(x) for _ in range(self.size)] for x in given]
        for everyone, own in zip(gathered, given, strict=True):
            self.distributed.all_gather(everyone, own)
        self.traffic.count(*given, times=self.size - 1)
        writes, keeps = [*gathered, [None] * self.size][:2]
        state = torch.zeros_like(given[0])
        first = 0 if step > 0 else self.size - 1
        for i in range(first, self.rank, step):
            state = Effect(keeps[i], writes[i]).on(state)
        return state


WAYS: dict[str, type[ProcessRanks]] = {way.label: way for way in (Ring, AllGather)}


class _Before(torch.autograd.Function):
    """States before parts, or with `backward` after them, as a function of what all parts do,
    across ranks. Its gradient is such a function too, so that it has derivatives of any order."""

    @staticmethod
    def forward(ctx, ranks: Ranks, backward: bool, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        effects = [Effect(*pair) for pair in zip(tensors[::2], tensors[1::2], strict=True)]
        before = ranks.scan(effects, backward=backward)
        ctx.ranks, ctx.went_back = ranks, backward
        ctx.save_for_backward(*(keep for keep, _ in effects), *before)
        return tuple(before)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        keeps = ctx.saved_tensors[: len(gradients)]
        before = ctx.saved_tensors[len(gradients) :]
        effects = [
            Effect(None if keep is None else keep.mT, gradient)
            for keep, gradient in zip(keeps, gradients, strict=True)
        ]
        wanted = _states(ctx.ranks, not ctx.went_back, effects)
        found = [None, None]
        for keep, state, d_write in zip(keeps, before, wanted, strict=True):
            found += [None if keep is None else d_write @ state.mT, d_write]
        return tuple(found)


def states_before(ranks: Ranks, effects: Sequence[Effect]) -> tuple[Tensor, ...]:
    """The states before the parts that this process holds, of what these do: differentiable, so
    that the gradients of later parts reach earlier ones. All ranks have to call it, and to go back
    through it, in the same order."""
    return _states(ranks, False, effects)


def _states(ranks: Ranks, backward: bool, effects: Sequence[Effect]) -> tuple[Tensor, ...]:
    return _Before.apply(ranks, backward, *(x for effect in effects for x in effect))
