"""`python -m gft`, which is what torchrun starts: `torchrun -m gft train ...`."""

from .cli import main

main()
