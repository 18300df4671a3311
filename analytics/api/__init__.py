"""The read API, budgets and the gate."""
