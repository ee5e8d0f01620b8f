"""Positions of each kind, in a whole sequence and a token at a time, and how tokens are drawn."""

from dataclasses import replace

import pytest
import torch

from replib.claims.common import laptop_model
from replib.generation import Decoder, most_likely, sampled
from replib.layers import POSITIONS
from replib.models import CausalTransformer

B, N, V = 3, 12, 7
every_kind = pytest.mark.parametrize("positions", POSITIONS)


def small(positions, max_len=N, **changes):
    torch.manual_seed(0)
    config = replace(laptop_model("linear"), positions=positions, d_model=16, **changes)
    return CausalTransformer(config, vocab_size=V, max_len=max_len).double().eval()


def tokens(n=N):
    return torch.randint(V, (B, n), generator=torch.Generator().manual_seed(1))


@every_kind
def test_a_decoder_gives_what_the_model_gives(positions):
    model, given = small(positions), tokens()
    expected = model(given)
    decoder = Decoder(model, B)
    found = [decoder.prefill(given[:, :5])] + [decoder.step(x) for x in given[:, 5:].unbind(1)]
    torch.testing.assert_close(torch.stack(found, dim=1), expected[:, 4:])
    state, by_step = model.init_state(B), []
    for x in given.unbind(1):
        logits, state = model.step(state, x)
        by_step.append(logits)
    torch.testing.assert_close(torch.stack(by_step, dim=1), expected)


@pytest.mark.parametrize("positions", ["none", "batch row"])
def test_without_positions_of_tokens_a_sequence_has_no_longest_length(positions):
    longer = tokens(3 * N)
    found, expected = small(positions)(longer), small(positions, max_len=3 * N)(longer)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("positions", ["learned", "added"])
def test_a_sequence_beyond_the_positions_is_refused(positions):
    with pytest.raises(ValueError, match=f"position {N} is beyond the model's {N} positions"):
        small(positions)(tokens(N + 1))


def test_learned_positions_end_for_a_decoder_too_and_sinusoids_go_on():
    longer = tokens(N + 2)
    learned = Decoder(small("learned"), B)
    with pytest.raises(ValueError, match=f"{N} positions are taken"):
        learned.prefill(longer)
    with pytest.raises(ValueError, match=f"max_len {N + 1}: use 1 to {N}"):
        Decoder(small("learned"), B, max_len=N + 1)
    Decoder(small("added"), B).prefill(longer)


def test_the_position_of_a_batch_row_is_that_of_all_its_tokens():
    model = small("batch row")
    rows = model.embedding(tokens()) - 4 * model.embedding.tokens(tokens())  # √16
    torch.testing.assert_close(rows, rows[:, :1].expand_as(rows))
    expected = small("added").embedding.sinusoids[:B]
    torch.testing.assert_close(rows[:, 0], expected)


def test_without_positions_a_layer_does_not_know_the_order_of_what_came_before():
    model, given = small("none", n_layers=1), tokens()
    other = torch.cat([given[:, :-1].flip(1), given[:, -1:]], dim=1)
    torch.testing.assert_close(model(given)[:, -1], model(other)[:, -1])
    with_order = small("added", n_layers=1)
    assert not torch.allclose(with_order(given)[:, -1], with_order(other)[:, -1])


def drawn(n=20_000, **how):
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0]).expand(n, -1)
    found = sampled(torch.Generator().manual_seed(0), **how)(logits)
    return found.bincount(minlength=4) / n, logits[0]


def test_tokens_are_drawn_as_often_as_they_are_likely():
    for temperature in (0.5, 1.0, 2.0):
        shares, logits = drawn(temperature=temperature)
        expected = (logits / temperature).softmax(-1)
        torch.testing.assert_close(shares, expected, atol=0.02, rtol=0)


def test_of_the_likeliest_alone_none_other_is_drawn():
    shares, logits = drawn(top_k=2)
    torch.testing.assert_close(shares[:2], logits[:2].softmax(-1), atol=0.02, rtol=0)
    assert shares[2:].eq(0).all()
    logits = torch.randn(50, 9, generator=torch.Generator().manual_seed(0))
    greedy = sampled(torch.Generator().manual_seed(0), top_k=1)
    assert torch.equal(greedy(logits), most_likely(logits))


@pytest.mark.parametrize("how", [{"temperature": 0.0}, {"top_k": 0}])
def test_nothing_can_be_drawn_at_a_temperature_or_of_so_many_as_0(how):
    with pytest.raises(ValueError, match="use a"):
        sampled(torch.Generator(), **how)
