"""Reports as figures, one file each."""
