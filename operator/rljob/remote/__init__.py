"""A job in a cluster, looked at from outside: `kubectl rljob status|logs|watch`. Knows the API and a kubeconfig, not the operator."""
