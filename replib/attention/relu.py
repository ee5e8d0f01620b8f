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
