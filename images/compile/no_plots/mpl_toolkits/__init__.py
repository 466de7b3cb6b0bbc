"""Stand-in: see images/compile/no_plots/matplotlib."""
