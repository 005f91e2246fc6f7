"""A training run: its state and steps, its checkpoints, logs and files.

training_loop   train(): a run from its start or its checkpoint to its end
run_state       Run: all that changes while a method trains, and a step of it
checkpoint      what a run needs to go on bit for bit, and how it is stored
optimizer       the optimiser and the learning rate of each step
cuda_graph      forward and backward of a step, captured once and replayed
settings        where and how fast a run is carried out
config_file     recipe and settings as config.yaml
logs            progress bar, log.csv, TensorBoard, Weights & Biases
export_formats  a checkpoint's encoder as a file for other programs
"""
