"""What drawing functions return, for those who keep it without knowing matplotlib."""

from matplotlib.figure import Figure

__all__ = ["Figure"]
