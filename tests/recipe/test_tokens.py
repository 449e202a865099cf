import pytest

from megatron_octo.recipe.tokens import format_tokens, parse_tokens


@pytest.mark.parametrize(
    ("written", "tokens"),
    [
        ("200B", 200_000_000_000),
        ("20b", 20_000_000_000),
        ("1.5M", 1_500_000),
        ("300K", 300_000),
        ("0.25T", 250_000_000_000),
        ("1_000_000", 1_000_000),
        (" 3 M ", 3_000_000),
        ("7", 7),
        (4_194_304, 4_194_304),
        ("4.194304M", 4_194_304),
    ],
)
def test_counts_are_read_as_people_write_them(written: str | int, tokens: int) -> None:
    assert parse_tokens(written) == tokens


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("many", "is not a token count"),
        ("-5", "is not a token count"),
        (-5, "is not a token count"),
        ("2Q", "is not a token count"),
        ("1e9", "is not a token count"),
        (1e9, "is not a token count"),
        (True, "is not a token count"),
        (None, "is not a token count"),
        ("", "is not a token count"),
        ("1.5", "is not a whole number of tokens"),
        ("1.0005K", "is not a whole number of tokens"),
        ("0", "must be above 0"),
        (0, "must be above 0"),
    ],
)
def test_what_is_no_count_is_refused(written: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_tokens(written)
    assert repr(written) in str(caught.value)


@pytest.mark.parametrize(
    ("tokens", "written"),
    [
        (200_000_000_000, "200B"),
        (4_194_304, "4.194M"),
        (1_500_000, "1.5M"),
        (999, "999"),
        (1_000, "1K"),
        (10**12, "1T"),
    ],
)
def test_counts_are_written_shortly(tokens: int, written: str) -> None:
    assert format_tokens(tokens) == written
