"""What would cost a search, data or money: one module of rules per subject."""
