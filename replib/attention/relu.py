"""Linear attention with the features relu(x), one of the baselines of Schlag, Irie & Schmidhuber
2021, *Linear Transformers Are Secretly Fast Weight Memory Systems*."""

from replib.attention.linear import LinearAttention


class ReluAttention(LinearAttention):
    """Linear attention with φ = relu, R = D, by the kernels of linear attention.

    A query may have no feature in common with a key before it: its denominator is then `eps` alone,
    and what it reads 0. Where features barely meet, the denominator is near `eps` and what is read
    changes steeply with the query.
    """

    label = "relu"
    feature_map = "relu"

    @classmethod
    def peak_bytes(
        cls,
        *,
        batch_size,
        n_heads,
        seq_len,
        head_dim,
        itemsize,
        backward,
        options=None,
        kernel=None,
    ):
        sizes = {"batch_size": batch_size, "n_heads": n_heads, "seq_len": seq_len}
        sizes |= {"head_dim": head_dim, "itemsize": max(itemsize, 4)}
        features = batch_size * n_heads * seq_len * head_dim * max(itemsize, 4)  # of q or of k
        products = super().peak_bytes(backward=backward, kernel=kernel, **sizes)
        return products + features * (4 if backward else 2)
