"""The copy tasks are those of the papers."""

import pytest
import torch

from replib.tasks import CausalCopy, SequenceCopy


def draw(task, batch_size=2000, seed=0):
    return task.sample(batch_size, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seq_len", [5, 16, 17, 128])
def test_causal_copy_is_symbols_separator_symbols_zeros(seq_len):
    batch = draw(CausalCopy(seq_len=seq_len))
    (tokens,) = batch.inputs
    assert tokens.shape == batch.targets.shape == (2000, seq_len)
    assert torch.equal(tokens[:, 1:], batch.targets[:, :-1])
    for row, in_loss, in_accuracy in zip(tokens, batch.in_loss, batch.in_accuracy, strict=True):
        n = int((row == 0).nonzero()[0])
        assert torch.equal(row[:n], row[n + 1 : 2 * n + 1])
        assert (row[2 * n + 1 :] == 0).all()
        assert in_loss.nonzero().flatten().tolist() == list(range(n - 1, 2 * n))
        assert in_accuracy.nonzero().flatten().tolist() == list(range(n, 2 * n))


def test_causal_copy_draws_every_length_of_the_paper_equally_often():
    """128: torch.randint(32, 63) in the original code, so 32 to 62 symbols."""
    (tokens,) = draw(CausalCopy(seq_len=128), 31_000).inputs
    n = (tokens == 0).int().argmax(1)
    assert (n.min(), n.max()) == (32, 62)
    counts = torch.bincount(n)[32:]
    assert (counts - 1000).abs().max() < 6 * 1000**0.5


def test_copied_symbols_are_uniform():
    (tokens,) = draw(CausalCopy(seq_len=32)).inputs
    shares = torch.bincount(tokens[:, :8].flatten(), minlength=11) / tokens[:, :8].numel()
    assert shares[0] == 0
    assert (shares[1:] - 0.1).abs().max() < 0.02


def test_causal_copy_docstring_example():
    symbols, n = torch.tensor([[7, 3, 9, 1, 4, 4, 4]]), torch.tensor([[4]])
    batch = CausalCopy(seq_len=16).batch(symbols, n)
    assert batch.inputs[0].tolist() == [[7, 3, 9, 1, 0, 7, 3, 9, 1, 0, 0, 0, 0, 0, 0, 0]]
    assert batch.targets[batch.in_loss].tolist() == [0, 7, 3, 9, 1]


def test_sequence_copy_docstring_example():
    batch = SequenceCopy(seq_len=6).batch(torch.tensor([[7, 3, 9, 1]]))
    source, tokens = batch.inputs
    assert source.tolist() == [[11, 7, 3, 9, 1, 12]]
    assert tokens.tolist() == [[11, 7, 3, 9, 1]]
    assert batch.targets.tolist() == [[7, 3, 9, 1, 12]]
    assert SequenceCopy().vocab_size == 13


@pytest.mark.parametrize("task", [CausalCopy(seq_len=16), SequenceCopy(seq_len=16)])
def test_a_seed_gives_the_same_data_and_leaves_the_global_generator_alone(task):
    before = torch.get_rng_state()
    first, second, other = draw(task), draw(task), draw(task, seed=1)
    assert torch.equal(first.targets, second.targets)
    assert not torch.equal(first.targets, other.targets)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("task", [CausalCopy, SequenceCopy])
@pytest.mark.parametrize("seq_len", [-1, 0, 1, 10**9])
def test_a_length_without_a_copy_is_refused(task, seq_len):
    with pytest.raises(ValueError, match=r"use \d \(one symbol\) to"):
        task(seq_len=seq_len)


def test_a_vocabulary_of_one_symbol_is_refused():
    with pytest.raises(ValueError, match="use 2 to 1000"):
        CausalCopy(n_symbols=1)
