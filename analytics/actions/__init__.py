"""Acts on decisions, or logs what it would have done: plan, execute, reconcile, undo, and tell. Decides nothing itself."""
