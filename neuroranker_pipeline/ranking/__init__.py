"""Teacher and student: models, losses, batching, the training loop and scoring."""
