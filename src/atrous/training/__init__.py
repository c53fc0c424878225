"""Training: `loop.py` is the loop, `state.py` one step of it, `loss.py` what is minimised.

`config.py` has every setting of a run, `recipes.py` the named recipes, `autoconfig.py` what ``finetune`` chooses from
the data. A new loss is a term in `loss.py` with its settings in ``LossConfig``; `atrous.ops.upsampled_loss` computes
cross-entropy fast.
"""
