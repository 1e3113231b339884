"""How fast are the kernels, beside dense attention and FlexAttention?"""
