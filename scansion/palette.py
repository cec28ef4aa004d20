"""Colours of runs in every figure."""

# Okabe and Ito's palette, which colour-blind readers can tell apart; grey is kept for references.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
REFERENCE = "#7f7f7f"
