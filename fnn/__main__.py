"""``python -m fnn`` is the command ``fnn``."""

from fnn.compare._cli import main

if __name__ == "__main__":
    main()
