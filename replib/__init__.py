"""Models, tasks and measurements of an interactive reproduction of *Transformers are RNNs*."""

__version__ = "0.1.0"
