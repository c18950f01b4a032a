"""python -m gft_kernels.check: are the ops right on this machine, and what do they cost?"""
