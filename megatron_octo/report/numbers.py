"""Numbers as the reports write them."""


def short_number(value: float) -> str:
    """Write 0.00005 as 5e-5."""
    if value == 0:
        return "0"
    digits, _, exponent = f"{value:.2e}".partition("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"


def short_duration(seconds: float) -> str:
    """Write 312.5 as 5m12s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{seconds:.1f}s"
