"""Colours of runs in every figure."""

# Okabe and Ito's palette, which colour-blind readers can tell apart, then six more; grey is kept for references.
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9",
    "#8C6BD6", "#8C564B", "#A3A500", "#00A6A6", "#D6336C", "#6B7F3A",
)  # fmt: skip
REFERENCE = "#7f7f7f"
