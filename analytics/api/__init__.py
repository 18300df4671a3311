"""The read API: bills, budgets, the gate, findings, actions, fleet power. Isolation is the database's; see service."""
