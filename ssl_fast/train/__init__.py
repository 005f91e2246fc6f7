"""A thin trainer around the losses: data, augmentation, encoders, methods, evaluation."""
