"""The Triton kernels, one module an operator. Importing this package does not need Triton; its modules do."""
