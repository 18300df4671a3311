"""What listens on every address is reached over loopback from the same machine."""

import pytest

from wattledger.ports import own_address

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("host", "reached_at"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("::", "[::1]"),
        ("10.1.2.3", "10.1.2.3"),
        ("fd00::5", "[fd00::5]"),
    ],
)
def test_an_address_listened_on_is_reached_from_here(host: str, reached_at: str) -> None:
    assert own_address(host) == reached_at
