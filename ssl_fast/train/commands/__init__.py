"""The subcommands of `ssl-fast`, a file each, the demo of `make demo`, and the exit code that they share."""
