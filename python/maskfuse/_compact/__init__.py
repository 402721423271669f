"""What `compact` is made of: a trace of one forward pass (`trace`, `rules`), a decision, a cut and a check."""
