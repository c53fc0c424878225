"""Operations on tensors: atrous convolution, resizing, normalisation, the fused loss, the mean over scales and flips.

A fast form of a convolution goes into `conv_kernels/`.
"""
