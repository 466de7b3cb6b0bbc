"""The verifiers, one file each."""
