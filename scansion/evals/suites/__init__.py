"""Test suites of others, SAEBench and sae-probes: their own code, in an environment that has it, on an SAE of ours."""
