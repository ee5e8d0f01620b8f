"""What the update rule changes on text: Shakespeare in characters."""

from replib.attention.dpfp import DPFPAttention
from replib.claims.common import experiment, seed_jobs
from replib.claims.language_model.grid import N_SEEDS, N_STEPS, character_config
from replib.lab.run import Job, TrainingJob
from replib.language_model import LanguageModelConfig
from replib.tasks.text import Text

RULES = {"sum": "dpfp", "delta": "delta"}  # with the same features
POSITIONS = {"positions": "concatenated", "none": "none"}
N_CARRIED = (1, 2, 4, 8, 16, 0)  # segments; 0 is without end
SEGMENT = 64
MEMORY_LENS = (8, 16, 32, 64, 128)  # keys and values; 16 have the bytes of the delta rule's state
NUS = (1, 2, 3)


def rule_config(rule: str, positions: str, normalised: bool, scale: str) -> LanguageModelConfig:
    """A rule with or without positions and attention normalisation, in segments of 256, which is
    more than the 32 features of a head of 16 can hold apart."""
    options = DPFPAttention.Options(nu=1, normalised=normalised)
    return character_config(
        RULES[rule],
        N_STEPS[scale],
        task=Text(seq_len=256),
        batch_size=8,
        options=options,
        positions=POSITIONS[positions],
    )


@experiment("Text: sum and delta rule, with and without positions and normalisation")
def update_rules_text(scale: str) -> list[Job]:
    configs = [
        rule_config(rule, positions, normalised, scale)
        for rule in RULES
        for positions in POSITIONS
        for normalised in (True, False)
    ]
    return seed_jobs(configs, N_SEEDS[scale])


def carried_config(
    attention: str, n_carried: int, scale: str, memory_len: int | None = None, **how
) -> LanguageModelConfig:
    """A model whose state goes through so many segments of 64, in training and in the test; without
    positions, which would go on beyond those that it was trained with."""
    return character_config(
        attention,
        N_STEPS[scale],
        task=Text(seq_len=SEGMENT),
        batch_size=32,
        positions="none",
        n_carried=n_carried,
        memory_len=memory_len,
        eval_batches=8,  # one after the other where the state is carried without end
        **how,
    )


def memory_configs(scale: str) -> list[LanguageModelConfig]:
    """What is carried without end, by its size: a cache of the last keys and values, and states of
    more features."""
    caches = [carried_config("softmax", 0, scale, m) for m in MEMORY_LENS]
    states = [
        carried_config("delta", 0, scale, options=DPFPAttention.Options(nu=nu)) for nu in NUS[1:]
    ]
    return caches + states


@experiment("Text: a state carried through segments, and its size")
def text_carry(scale: str) -> list[Job]:
    """Carried through 1, 2, 4, ... segments and without end, sum and delta; then other sizes."""
    n_carried = (1, 2, 0) if scale == "smoke" else N_CARRIED
    configs = [carried_config(name, n, scale) for n in n_carried for name in RULES.values()]
    configs += memory_configs(scale)[:: 3 if scale == "smoke" else 1]
    n_seeds = N_SEEDS[scale]
    return [TrainingJob(config=config, seed=seed) for seed in range(n_seeds) for config in configs]


EXPERIMENTS = (update_rules_text, text_carry)
