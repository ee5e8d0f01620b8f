"""The mixture of logistics is a distribution, and a pixel model learns, draws and completes."""

import math

import pytest
import torch

from replib.tasks.image_files import DATASETS, Images, load_images
from replib.tasks.images import Pixels, histogram_bits, level_log_probs, log_prob, sample_levels

LEVELS = (2, 3, 17, 256)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_outputs(*shape, n_mixtures=3, spread=1.0, seed=0):
    outputs = torch.randn(*shape, 3, n_mixtures, generator=generator(seed), dtype=torch.float64)
    outputs[..., 2, :] = spread * outputs[..., 2, :] - 2  # log scales
    return outputs.flatten(-2)


@pytest.mark.parametrize("n_levels", LEVELS)
@pytest.mark.parametrize("spread", [1.0, 30.0])
def test_the_levels_sum_to_one(n_levels, spread):
    outputs = random_outputs(200, spread=spread) * 2
    total = level_log_probs(outputs, n_levels).exp().sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-12)


@pytest.mark.parametrize("n_levels", LEVELS)
def test_the_probability_of_a_level_is_the_integral_of_the_density_over_its_bin(n_levels):
    """The density of a logistic, sech²((x - μ) / 2s) / 4s, summed by the midpoint rule."""
    outputs = random_outputs(5)
    logits, means, log_scales = outputs.unflatten(-1, (3, -1)).unbind(-2)  # (5, K)
    n_points, scales = 4001, log_scales.exp().unsqueeze(-1)
    within = (torch.arange(n_points, dtype=torch.float64) + 0.5) / n_points - 0.5
    for level in range(n_levels):
        first, last = level - 0.5, level + 0.5
        middle = 2 * (level + within) / (n_levels - 1) - 1
        width = 2 / (n_levels - 1) / n_points
        z = (middle - means.unsqueeze(-1)) / scales / 2
        inside = (width / (4 * scales) / z.cosh() ** 2).sum(-1)  # (5, K)
        edges = 2 * torch.tensor([first, last]) / (n_levels - 1) - 1
        below, above = ((edges - means.unsqueeze(-1)) / scales).sigmoid().unbind(-1)
        inside = inside + (below if level == 0 else 0) + (1 - above if level == n_levels - 1 else 0)
        expected = (logits.softmax(-1) * inside).sum(-1)
        found = log_prob(outputs, torch.full((5,), level), n_levels).exp()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("n_levels", LEVELS)
def test_the_gradient_is_that_of_the_probability(n_levels):
    levels = torch.tensor([0, 1, n_levels - 1, n_levels // 2])
    outputs = random_outputs(4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: log_prob(x, levels, n_levels), outputs)


@pytest.mark.parametrize("n_levels", LEVELS)
@pytest.mark.parametrize("scale", [-50.0, -7.0, 7.0, 80.0])
@pytest.mark.parametrize("mean", [-40.0, 0.0, 1.0, 40.0])
def test_far_and_narrow_logistics_keep_finite_values_and_gradients(n_levels, scale, mean):
    """In float32, where the difference of two sigmoids would be 0, and its logarithm infinite."""
    outputs = torch.tensor([[0.0, mean, scale]]).expand(n_levels, 3).clone().requires_grad_()
    found = log_prob(outputs, torch.arange(n_levels), n_levels)
    (gradient,) = torch.autograd.grad(found.sum(), outputs)
    assert found.isfinite().all() and gradient.isfinite().all()
    wide = log_prob(outputs.detach().double(), torch.arange(n_levels), n_levels)
    torch.testing.assert_close(found.double(), wide, rtol=1e-4, atol=1e-4)


def test_the_likelihood_of_a_far_level_falls_with_its_distance_over_the_scale():
    """Deep in the tail a logistic is exponential, so a step of 2 / (L - 1) costs that over s."""
    outputs = torch.tensor([-1.0, -1.0, -3.0])
    found = log_prob(outputs, torch.arange(100, 200), 256)
    expected = torch.full((99,), -2 / 255 * math.exp(3))
    torch.testing.assert_close(found.diff(), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("n_levels", LEVELS)
def test_drawn_levels_have_their_probabilities(n_levels):
    n, outputs = 200_000, random_outputs(1, n_mixtures=4, seed=3)
    drawn = sample_levels(outputs.expand(n, -1), n_levels, generator())
    shares = drawn.bincount(minlength=n_levels) / n
    probabilities = level_log_probs(outputs[0], n_levels).exp()
    spread = (probabilities * (1 - probabilities) / n).sqrt()
    assert ((shares - probabilities).abs() <= 6 * spread + 1e-5).all()


def test_drawing_follows_its_generator_and_leaves_the_global_one_alone():
    outputs, before = random_outputs(50), torch.get_rng_state()
    first, second, other = (sample_levels(outputs, 256, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_pixels_docstring_example():
    task = Pixels()
    batch = task.batch(torch.tensor([[[[3], [9]], [[1], [4]]]], dtype=torch.uint8))
    assert batch.inputs[0].tolist() == [[17, 3, 9, 1]]
    assert batch.targets.tolist() == [[3, 9, 1, 4]]


@pytest.mark.parametrize("name, seq_len, vocab_size", [("mnist", 784, 257), ("cifar10", 3072, 257)])
def test_the_tasks_of_the_paper_have_its_lengths(name, seq_len, vocab_size):
    """Known without the files, as an experiment's grid is."""
    task = Pixels(images=name)
    sizes = {"vocab_size": vocab_size, "max_len": seq_len, "n_outputs": 30}
    assert task.model_sizes == sizes


def test_training_draws_from_the_images_to_train_on_alone():
    task, digits = Pixels(), load_images("digits")
    drawn = {tuple(row.tolist()) for row in task.sample(4000, generator()).targets}
    train, test = (
        {tuple(row) for row in x.flatten(1).tolist()} for x in (digits.train, digits.test)
    )
    assert drawn <= train
    assert len(drawn) > 0.85 * len(train)  # 1 - exp(-4000 / 1545) = 0.925 of them
    assert not drawn & test


def test_the_test_images_are_held_out_once_each():
    task, digits = Pixels(), load_images("digits")
    batches = list(task.held_out(100, 10, generator()))
    assert [len(batch.targets) for batch in batches] == [100, 100, 52]
    assert torch.equal(torch.cat([b.targets for b in batches]), digits.test.flatten(1).long())
    assert len(list(task.held_out(100, 2, generator()))) == 2


def test_the_loss_is_the_mean_over_all_levels():
    task = Pixels(n_mixtures=3)
    (batch,) = task.held_out(4, 1, generator())
    outputs = random_outputs(4, 64)
    probabilities = level_log_probs(outputs, 17).gather(-1, batch.targets[..., None])
    assert task.loss(outputs, batch).item() == pytest.approx(-probabilities.mean().item())


def test_the_histogram_predicts_each_position_by_its_counts():
    """Two positions of two levels: (3 + 1, 1 + 1) of 6 and (0 + 1, 4 + 1) of 6."""
    train = torch.tensor([[0, 1], [0, 1], [0, 1], [1, 1]], dtype=torch.uint8).view(4, 1, 2, 1)
    test = torch.tensor([[1, 0], [0, 1]], dtype=torch.uint8).view(2, 1, 2, 1)
    none = torch.zeros(0)
    expected = -(math.log2(2 / 6) + math.log2(1 / 6) + math.log2(4 / 6) + math.log2(5 / 6)) / 4
    assert histogram_bits(Images(train, none, test, none), 2) == pytest.approx(expected)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"images": "faces"}, f"use {', '.join(DATASETS)}"),
        ({"n_mixtures": 0}, "n_mixtures 0: use 1 to 100"),
    ],
)
def test_impossible_settings_are_refused_with_the_remedy(changes, message):
    with pytest.raises(ValueError, match=message):
        Pixels(**changes)
