"""Train a model, by one recipe for the service's trainer and for `fit()`.

recipe.py        the recipe, from a prepared model to a measured one
loop.py          the training loop, from top to bottom
parts.py         make the sampler, loss, loader and configuration from the training options
config.py        the settings of the loop
state.py         save the state of a training, and restore it
optimizer.py     parameter groups, learning rate schedule, averages of weights
gradients.py     compute the gradient of a batch, whole or in parts, in one process or several
norms.py         batch norms that keep the statistics of a pretrained network
new_head.py      start a new projection head as principal components
losses.py        losses by name, for each kind of data
imports.py       leave out what another library imports and hardly uses
trials.py        try several settings on short runs, and choose one
tried.py         what was tried, and the file that keeps it
precision.py     choose fp32 or bf16 by measurement
features.py      train only the head, on features that are kept
micro_batch.py   how many items are in memory at a time
watching.py      report the progress of a training to a watcher
progress_bar.py  a watcher that shows the progress on the terminal

May import evaluation and the packages below it. It does not know about processes or Jina.
"""
