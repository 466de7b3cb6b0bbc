"""`rljob reward compare`: how often verifiers agree with people, on answers that people labelled."""
