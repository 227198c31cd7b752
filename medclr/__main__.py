"""`python -m medclr`, and so `torchrun -m medclr`: what the `medclr` script does."""

from medclr.cli import entry

if __name__ == "__main__":
    entry()
