"""How a model learns: one recipe, for the service's trainer and for `fit()`.

recipe.py        the recipe, from a prepared model to a measured one
loop.py          the loop, top to bottom
parts.py         from training options to sampler, loss, loader and configuration
config.py        what the loop depends on besides its data
state.py         where a training is, to go on from
optimizer.py     parameter groups, schedule, averages of weights
gradients.py     the gradient of a batch, at once or in parts, by one process or several
losses.py        losses by name, for each kind of data
precision.py     fp32 or bf16, by measurement
features.py      training of the head alone, on kept features
micro_batch.py   how many items are in memory at a time
watching.py      what a training tells whoever watches it
progress_bar.py  a watcher: the terminal

May import evaluation and what lies below it. It knows no processes and no Jina.
"""
