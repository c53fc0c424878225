"""Fast exact forms of convolutions on a CPU, a file for each; `dispatch.py` chooses among those of atrous ones.

A new form is a file, an entry of ``FORMS`` in `dispatch.py` and a rule for when it runs. It has to pass a trial first
(`atrous.ops.trusted`). `winograd.py` serves `atrous.ops.packed_conv`.
"""
