"""What outlives a step: the queue, the memory bank, the momentum encoder."""
