"""vLLM: the zygote that engines are forked from, the weight-transfer plug-in, how an engine is started, and its client."""
