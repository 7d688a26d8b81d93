"""Training loops for probes and whole networks, and their inputs and outputs."""
