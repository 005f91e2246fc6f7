"""The tests of ssl_fast: folders as those of the package; helpers/ is what they share."""
