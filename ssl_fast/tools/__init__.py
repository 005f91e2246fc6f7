"""The command line, the build, the check of an installation."""
