"""What tests share: backends, comparators, the oracle, the lists of losses, inputs drawn at random, processes."""
