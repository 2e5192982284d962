import pytest

from planish.report.words import count, percent, size


@pytest.mark.parametrize(
    ("nbytes", "said"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (538_060_032, "538 MB"),
        (999_700, "1 MB"),
        (1.5e13, "15000 GB"),
    ],
)
def test_sizes(nbytes: float, said: str) -> None:
    assert size(nbytes) == said


@pytest.mark.parametrize(
    ("share", "said"),
    [(0, "0"), (1, "100%"), (0.31234, "31.2%"), (1.3, "130%"), (1e-7, "1.0e-05%"), (4e-4, "0.04%")],
)
def test_shares(share: float, said: str) -> None:
    assert percent(share) == said


def test_counts() -> None:
    assert (count(12), count(1234), count(134_515_008)) == ("12", "1.23k", "135M")
