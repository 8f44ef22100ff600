"""The settings of the training loop."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All that the loop depends on, except its data. The rates are AdamW's."""

    epochs: int = 10
    learning_rate: float = 1e-3  # peak, after the warm-up
    backbone_rate: float = 1.0  # the backbone's rate, as a share of learning_rate
    weight_decay: float = 0.01
    warmup: float = 0.1  # share of all steps
    patience: int = 0  # stop after this many epochs without improvement; 0: never
    micro_batch: int | None = None  # items in memory at a time; None: the whole batch
    ema: float = 0.0  # decay of the moving average of the weights; 0: no average
    wise_ft: float = 1.0  # share of the tuned weights in the final ones
    fixed_norms: bool = False  # whether batch norms keep the statistics that they have
    bf16: bool = False
    seed: int = 0
