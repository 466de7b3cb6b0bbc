"""Node agent, the shim around each sidecar, and the weight arena between trainer and engine."""
