"""Every message that crosses a process border, and the environment a process is started with. No torch, no kubernetes."""
