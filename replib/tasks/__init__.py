"""What is learned: frozen configs that draw batches. Images and their files are modules apart."""

from replib.tasks.copy import Batch, CausalCopy, SequenceCopy, Task, TokenTask
from replib.tasks.retrieval import Associations, AssociativeRetrieval

__all__ = [
    "Associations",
    "AssociativeRetrieval",
    "Batch",
    "CausalCopy",
    "SequenceCopy",
    "Task",
    "TokenTask",
]
