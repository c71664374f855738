"""Marks that stay apart in grayscale and for colour-blind readers."""

COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's, without the yellow that a white page swallows."""

LINES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (8, 3)), (0, (1, 3)))
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*", "p", "<", ">", "h")
