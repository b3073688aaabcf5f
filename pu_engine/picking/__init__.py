"""What selection is made of: PU learning, content scores, the prior, and from an order to the picks."""
