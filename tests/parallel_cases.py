"""What ranks that are processes compute in tests; each is called in all of them."""

import torch

from replib.attention import ATTENTION
from replib.models import CausalTransformer, TransformerConfig
from replib.parallel import WAYS, SequenceParallel, Traffic, attend
from replib.tasks import CausalCopy

N, HEADS, GROUPS, SIZE, VALUE = 37, 4, 2, 5, 6
TASK = CausalCopy(seq_len=37, n_symbols=5)


def tensors(name: str):
    """A mechanism, q, k, v and a weight of each number put out, the same in every process."""
    generator = torch.Generator().manual_seed(7)
    sizes = ((HEADS, SIZE), (GROUPS, SIZE), (GROUPS, VALUE), (HEADS, VALUE))
    q, k, v, w = (
        torch.randn(2, heads, N, size, generator=generator, dtype=torch.float64)
        for heads, size in sizes
    )
    mechanism = ATTENTION[name].for_model(n_heads=GROUPS, head_dim=SIZE, max_len=N).double()
    for parameter in mechanism.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    return mechanism, q, k, v, w


def model_and_batch(name: str):
    config = TransformerConfig(
        attention=name, n_layers=2, n_heads=2, d_model=12, d_feedforward=16, dropout=0.0
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = CausalTransformer(config, **TASK.model_sizes).double()
    return model, TASK.sample(2, torch.Generator().manual_seed(4))


def part_of_attention(name: str, way: str):
    """What this rank computes of `tensors`: y, the gradients of q, k, v, and what it sent."""
    ranks = WAYS[way]()
    mechanism, *qkv, w = tensors(name)
    part = ranks.part(N)
    held = [x[:, :, part].clone().requires_grad_() for x in qkv]
    y = attend(mechanism, *held, ranks)
    gradients = torch.autograd.grad((y * w[:, :, part]).sum(), held)
    return y.detach(), gradients, ranks.traffic


def second_derivatives(compute, qkv, w) -> list[torch.Tensor]:
    """By q, k and v of the sum of the squares of the first derivatives by these."""
    qkv = [x.clone().requires_grad_() for x in qkv]
    first = torch.autograd.grad((compute(*qkv) * w).sum(), qkv, create_graph=True)
    return [*torch.autograd.grad(sum((x**2).sum() for x in first), qkv)]


def part_of_second_derivatives(name: str) -> list[torch.Tensor]:
    """What this rank of a ring finds of `second_derivatives`."""
    mechanism, *whole = tensors(name)
    ranks = WAYS["ring"]()
    *qkv, w = (x[:, :, ranks.part(N)] for x in whole)
    return second_derivatives(lambda *x: attend(mechanism, *x, ranks), qkv, w)


def part_of_model(name: str, way: str) -> tuple[float, list[torch.Tensor], Traffic]:
    """The loss of the whole batch and its gradients, as this rank has them."""
    model, batch = model_and_batch(name)
    parallel = SequenceParallel(model, WAYS[way]())
    loss = parallel.loss(parallel(*batch.inputs), batch.targets, batch.in_loss)
    loss.backward()
    parallel.sum_gradients()
    gradients = [p.grad for p in model.parameters()]
    return parallel.ranks.total(loss.detach()).item(), gradients, parallel.ranks.traffic


def everything(names: tuple[str, ...], ways: tuple[str, ...]) -> dict:
    """Both, of each mechanism and way, in one group of processes."""
    pairs = [(name, way) for name in names for way in ways]
    return {pair: (part_of_attention(*pair), part_of_model(*pair)) for pair in pairs}


def fails_on_the_second() -> None:
    from torch import distributed

    if distributed.get_rank() == 1:
        raise ValueError("rank one is unwell")
    distributed.barrier()


def disagreements() -> list[str]:
    """What is said on this rank where the second gives something else than the first."""
    from torch import distributed

    mechanism, *qkv, _ = tensors("linear")
    ranks, second = WAYS["ring"](), distributed.get_rank() == 1
    said = []
    for other in (
        (mechanism, *(x.float() for x in qkv)),
        (mechanism, *(x[:1] for x in qkv)),
        (mechanism, *(x.clone().requires_grad_() for x in qkv)),
        (ATTENTION["relu"](), *qkv),
    ):
        try:
            attend(*(other if second else (mechanism, *qkv)), ranks)
        except ValueError as error:
            said.append(str(error))
    own = [x[:, :, : 3 + second] for x in qkv]  # lengths may differ
    attend(mechanism, *own, ranks)
    return said


def the_second_leaves() -> None:
    import sys

    from torch import distributed

    if distributed.get_rank() == 1:
        sys.exit()
    sleeps()


def sleeps() -> None:
    import time

    time.sleep(60)
