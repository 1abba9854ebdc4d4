"""AIRe for nerfstudio: sinusoidal neural fields whose architecture adapts while they train."""

__version__ = "0.1.0"
