"""What `ssl-fast` runs, a file a subcommand; `demo` is what `make demo` runs."""
