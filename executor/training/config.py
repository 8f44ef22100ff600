"""What the training loop depends on besides its data."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What the loop depends on besides its data. Rates are AdamW's."""

    epochs: int = 10
    learning_rate: float = 1e-3  # peak, after the warm-up
    backbone_rate: float = 1.0  # the backbone's rate as a share of that
    weight_decay: float = 0.01
    warmup: float = 0.1  # share of all steps
    patience: int = 0  # epochs without improvement; 0: never stop early
    micro_batch: int | None = None  # items in memory at a time; None: the whole batch
    ema: float = 0.0  # decay of the moving average of the weights; 0: none is kept
    wise_ft: float = 1.0  # share of the tuned weights in the final ones
    bf16: bool = False
    seed: int = 0
