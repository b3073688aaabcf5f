"""What a plan is made of: small timed samples, and a forecast of the selection."""
