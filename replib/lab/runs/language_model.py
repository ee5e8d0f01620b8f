"""What a trained language model is scored by: the perplexity of the whole test, in several ways."""

from replib.language_model import LanguageModelTraining
from replib.models import CausalTransformer
from replib.perplexity import bits_per, mean_of_batch_means

MAX_SEGMENTS = 200  # of a text that one state went through, told one by one


def scores(training: LanguageModelTraining) -> dict:
    """The figures of a row.

    `perplexity` is of a token of this vocabulary, by blocks, or with the state that is carried;
    `bits_per_byte` and `bits_per_character` compare vocabularies, where no word is unknown.
    `perplexity_of_batch_means` is what the language-model study tells in its place. `state_bytes`
    is what is kept of one sequence from one segment to the next, or at the end of a block.
    """
    config, model = training.config, training.model
    text = config.task.text
    test, seq_len = text.test, config.task.seq_len
    told = training.score(test.ids)
    found = {
        "n_test": len(told.nats),
        "n_parameters": sum(x.numel() for x in model.parameters()),
        "perplexity": told.perplexity,
        "bits_per_byte": bits_per(told.nats, test.n_bytes),
        "by_position": told.by_position(),
        "text_digest": text.digest,
    }
    if test.n_characters is not None:
        found["bits_per_character"] = bits_per(told.nats, test.n_characters)
    if config.carries:
        found["by_segment"] = told.by_segment(seq_len)[:MAX_SEGMENTS]
    else:
        found["perplexity_of_batch_means"] = mean_of_batch_means(model, test.ids, seq_len=seq_len)
    if config.stride is not None:
        found["perplexity_sliding"] = training.score(test.ids, stride=config.stride).perplexity
    found["state_bytes"] = state_bytes(training)
    return found


def state_bytes(training: LanguageModelTraining) -> int | None:
    """Bytes of the state of one sequence; None of a mechanism without one."""
    config, model = training.config, training.model
    n = config.memory_len or config.window or config.task.seq_len
    if isinstance(model, CausalTransformer):
        attention = model.blocks[0].self_attention.attention
        if not attention.recurrent or getattr(attention.options, "original", False):
            return None
    return model.init_state(1, n).nbytes
