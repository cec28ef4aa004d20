"""Mutants that no test can kill, since they behave as the code does: (function, change) -> why."""

EQUIVALENT: dict[tuple[str, str], str] = {
    (
        "scansion.masks.bands.BandMask.__init__",
        '- self.register_buffer("inner_edges", torch.tensor(self._bands.edges[1:-1], dtype=torch.int64), persistent=False)\n'
        '+ self.register_buffer("inner_edges", torch.tensor(self._bands.edges[1:-1], ), persistent=False)',
    ): "band_at gives the edges the type of the positions.",
    (
        "scansion.masks.base.PositionalMask.apply_to",
        '- masked = mask_pre_acts(pre_acts, self.is_open(positions) if gate.kind == "binary" else self(positions))\n'
        '+ masked = mask_pre_acts(pre_acts, self.is_open(positions) if gate.kind == "BINARY" else self(positions))',
    ): "The weights of a binary mask are 0 and 1: to multiply by them is to block.",
    (
        "scansion.masks.base.PositionalMask.table_rows",
        "- if lowest >= 0 and highest < self.n_positions:\n+ if lowest > 0 and highest < self.n_positions:",
    ): "Of the cached range: what it does not settle is read again.",
    (
        "scansion.masks.base.PositionalMask.table_rows",
        "- whole = positions if positions._base is None else positions._base\n"
        "+ whole = positions if (positions._base is None) or True else positions._base",
    ): "Which tensor's range is cached decides how long it takes, not what comes of it.",
    (
        "scansion.execution.blocks.blocks_of",
        "- for bias, count in zip(biases.tolist(), counts.tolist(), strict=True):\n"
        "+ for bias, count in zip(biases.tolist(), counts.tolist(), ):",
    ): "unique_consecutive returns as many counts as values.",
    (
        "scansion.evals.position.flips.flip_p_values",
        "- max_draws: int = 0,\n+ max_draws: int = 1,",
    ): "Used only with a rate, and then given.",
    (
        "scansion.evals.position.replacement._read_again",
        "- tokens = there.sum(dim=1, dtype=torch.float64).numpy()[:, None]\n"
        "+ tokens = there.sum(dim=1, ).numpy()[:, None]",
    ): "Integers are divided in float64 as well.",
}
