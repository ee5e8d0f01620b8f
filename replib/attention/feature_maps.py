"""Feature maps φ: (..., D) -> (..., R) whose inner product replaces exp(q·k).

D query/key size, R feature size, m random directions of FAVOR+ (`n_directions`), ν of DPFP (`nu`).
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

DPFP_NU = (1, 2, 3)  # the sizes of Schlag et al. 2021
MAX_NU = 64  # more is taken for a slip
# The largest exponent of a key's random feature: sums of e^60 over millions still fit float32.
MAX_EXPONENT = 60.0


def elu1(x: Tensor) -> Tensor:
    """elu(x) + 1 of Katharopoulos et al. 2020, eq. 7; positive, R = D.

    Deviation: computed as exp(min(x, 0)) + max(x, 0). Written as `elu(x) + 1` it rounds
    exp(x) - 1 + 1 and loses all digits of φ below x = -16 in float32. The slopes that torch has at
    0, 1 for this minimum and 0 for relu, add up to 1.
    """
    return torch.exp(x.clamp(max=0)) + torch.relu(x)


def check_nu(nu: int) -> None:
    """
    Raises:
        ValueError: it is no ν of `dpfp`, however large D is.
    """
    if not 1 <= nu <= MAX_NU:
        raise ValueError(f"nu {nu}: use 1 to {MAX_NU}, and below head_dim")


def dpfp(x: Tensor, nu: int) -> Tensor:
    """Deterministic parameter-free projection of Schlag et al. 2021, eq. 37-38; R = 2·D·ν.

    φ_{i·ν+j} is r_i·r_{i-j} with r = relu([x, -x]) and j = 1..ν, the index going round: two
    neighbours of r must be positive together. The order of the features is that of the
    published code, all i of j = 1 first.

    Raises:
        ValueError: ν is not between 1 and D - 1. At D, where x_i meets -x_i, features are 0, and
            from D + 1 on they repeat.
    """
    most = x.shape[-1] - 1
    if not 1 <= nu <= most:
        raise ValueError(f"DPFP of {x.shape[-1]} numbers with nu {nu}: use nu 1 to {most}")
    r = torch.cat([x, -x], dim=-1).relu()
    return torch.cat([r * r.roll(j, dims=-1) for j in range(1, nu + 1)], dim=-1)


def orthogonal_directions(
    n_rows: int, n_directions: int, generator: torch.Generator, *, dtype=torch.float32
) -> Tensor:
    """Random directions ω (D, m) of FAVOR+, orthogonal in blocks of D (Choromanski et al. 2021,
    section 3.2), each of which is N(0, I) taken alone.

    The Q of a Gaussian matrix is uniform among the orthogonal ones only when R has a positive
    diagonal, which LAPACK does not give: columns are multiplied by its signs. The lengths are those
    of independent Gaussian vectors.

    Raises:
        ValueError: there are no directions.
    """
    if n_directions < 1:
        raise ValueError(f"{n_directions} random directions: use at least 1")
    gaussian = partial(torch.randn, generator=generator, device=generator.device)
    n_blocks = -(-n_directions // n_rows)
    q, r = torch.linalg.qr(gaussian(n_blocks, n_rows, n_rows, dtype=torch.float64))
    q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    directions = q.transpose(0, 1).flatten(1)[:, :n_directions]  # (D, m)
    lengths = gaussian(n_rows, n_directions, dtype=torch.float64).norm(dim=0)
    return (directions * lengths).to(dtype)


def favor_exponents(x: Tensor, directions: Tensor) -> Tensor:
    """[ωᵀx, -ωᵀx] - |x|²/2, (..., D) -> (..., 2m)."""
    u = x @ directions
    return torch.cat([u, -u], dim=-1) - x.square().sum(-1, keepdim=True) / 2


def favor_keys(x: Tensor, directions: Tensor) -> Tensor:
    """Two-sided positive random features of exp(x·y) (Choromanski et al. 2021, lemma 1); R = 2·m.

    exp([ωᵀx, -ωᵀx] - |x|²/2) / sqrt(2m), so that φ(x)·φ(y) has the expectation exp(x·y).
    An exponent is at most |ω|²/2; beyond MAX_EXPONENT, met where D is above about 100, it is cut.
    """
    exponents = favor_exponents(x, directions).clamp(max=MAX_EXPONENT)
    return exponents.exp() / math.sqrt(2 * directions.shape[-1])


def identity(x: Tensor) -> Tensor:
    """For what are features already."""
    return x


FEATURE_MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu1": elu1,
    "relu": torch.relu,
    "tanh": torch.tanh,  # signed: for memories without a normaliser
    **{f"dpfp{nu}": partial(dpfp, nu=nu) for nu in DPFP_NU},
    "identity": identity,
}


def feature_map_named(name: str) -> Callable[[Tensor], Tensor]:
    """The feature map of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in FEATURE_MAPS:
        raise ValueError(f"unknown feature map {name!r}: use {', '.join(FEATURE_MAPS)}")
    return FEATURE_MAPS[name]
