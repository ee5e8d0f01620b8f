"""Models of images, pixel by pixel."""

from dataclasses import replace

from replib.claims.common import ADAMW, BOTH, experiment, laptop_model, paper_model, seed_jobs
from replib.lab.run import Job
from replib.models import TransformerConfig
from replib.tasks.image_files import dataset_named
from replib.tasks.images import Pixels
from replib.training import TrainingConfig


def pixel_model(attention: str) -> TransformerConfig:
    """A model of the 8 x 8 digits that trains in a minute or two on one core, and whose weights are
    a small file."""
    return replace(laptop_model(attention), n_layers=3, dropout=0.1)


def paper_images(attention: str, images: str) -> TrainingConfig:
    """Katharopoulos et al. 2020, section 4.2 and its supplement; batch and number of steps are
    those that their published code names for MNIST (250 epochs).

    Deviation: for CIFAR-10 the paper says 7 days, and batch 4 for linear attention and 1 for
    softmax; here both have batch 4 and the 500,000 steps that the published code names.
    """
    n_layers, batch_size, n_steps = {"mnist": (8, 16, 937_500), "cifar10": (16, 4, 500_000)}[images]
    return TrainingConfig(
        task=Pixels(images=images),
        model=paper_model(attention, n_layers=n_layers),
        batch_size=batch_size,
        n_steps=n_steps,
        lr=1e-4,
        lr_drop_step=n_steps,
        eval_every=n_steps // 50,
        eval_batches=dataset_named(images).n_test // batch_size,
    )


@experiment("Images pixel by pixel: bits per dimension over training")
def images(scale: str) -> list[Job]:
    """Models of images, pixel by pixel. The hyperparameters of the digits were chosen on a part of
    the images to train on."""
    if scale == "paper":
        return seed_jobs([paper_images(a, name) for name in ("mnist", "cifar10") for a in BOTH], 1)
    n_steps = 30 if scale == "smoke" else 2000
    configs = [
        TrainingConfig(
            task=Pixels(),
            model=pixel_model(a),
            batch_size=32,
            n_steps=n_steps,
            lr=4e-3,
            warmup_steps=50,
            eval_every=n_steps // 10 if scale == "smoke" else 50,
            eval_batches=1 if scale == "smoke" else 8,  # at 32 images each, all 252 of the test
            **ADAMW,
        )
        for a in BOTH
    ]
    jobs = seed_jobs(configs, 1 if scale == "smoke" else 3)
    return [replace(job, keep=scale == "laptop" and job.seed == 0) for job in jobs]


EXPERIMENTS = (images,)
