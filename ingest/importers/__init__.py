"""Import of files people already have, all through one tabular reader."""
