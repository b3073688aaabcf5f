"""What distillation is made of: batches, views, targets, losses and the loop over them."""
