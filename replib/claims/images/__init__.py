"""Claim 4, for real: linear attention models images as well as softmax."""

from replib.claims.claim import Claim, Statement
from replib.claims.images import grid
from replib.published import published


def paper() -> str:
    """What the paper found of images."""
    told = []
    for name, table, title, digits in (("mnist", 1, "MNIST", 3), ("cifar10", 2, "CIFAR-10", 2)):
        rows = published()["katharopoulos2020"][f"table{table}_{name}"]["rows"]
        told.append(
            f"{title}: linear {rows['linear'][0]:z.{digits}f}, softmax "
            f"{rows['softmax'][0]:z.{digits}f} (table {table})"
        )
    return f"Bits per dimension on images that are not those here. {'. '.join(told)}."


CLAIM = Claim(
    name="images",
    notebook="04_transformers_are_rnns",
    experiments=grid.EXPERIMENTS,
    statements=(
        Statement(
            name="images",
            title="4 images",
            text="Linear attention models images as well as softmax, to 0.05 bits per dimension.",
            paper=paper,
            experiments=("images",),
            figure="images_bits",
        ),
    ),
)
