"""`python -m rl_lightning` is the command `rl-lightning`."""

from rl_lightning.cli import main

if __name__ == "__main__":
    main()
