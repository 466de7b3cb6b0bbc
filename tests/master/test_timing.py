"""Where the time of an iteration went."""

from rljob.master.timing import uncounted


def test_what_a_worker_reports_again_is_not_counted_again() -> None:
    at_the_commit = {"train": 6.0, "gate": 0.02}
    afterwards = {"train": 6.0, "gate": 0.05, "export": 0.3}
    assert uncounted(afterwards, at_the_commit) == {"train": 0.0, "gate": 0.05 - 0.02, "export": 0.3}


def test_a_worker_that_began_anew_is_counted_whole() -> None:
    assert uncounted({"gate": 0.01, "attest": 0.2}, {"train": 6.0, "gate": 0.02}) == {"gate": 0.01, "attest": 0.2}
