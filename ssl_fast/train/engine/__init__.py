"""A run: its state, its steps, its checkpoints, logs and files. `training_loop.train` is where it begins."""
