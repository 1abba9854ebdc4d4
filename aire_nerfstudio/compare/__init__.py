"""Several nerfstudio methods on one scene, for the same time or the same steps: ``aire-compare``."""
