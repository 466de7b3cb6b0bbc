"""Runs a plan on this machine: a tiny kubelet. `rljob run` in one folder, with no cluster and no container runtime."""
