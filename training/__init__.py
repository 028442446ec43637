"""What every training shares: runs that resume, batches, augmentation, learning rates."""
