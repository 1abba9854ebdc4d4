"""Several nerfstudio methods on one scene: the same as ``aire-compare``."""

from aire_nerfstudio.commands import compare

if __name__ == "__main__":
    compare()
