"""`python -m gft`, which is what torchrun starts: `torchrun -m gft train ...`."""

from .cli import main

if __name__ == "__main__":  # processes of the comparison import this module again
    main()
