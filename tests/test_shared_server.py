"""A team's server: two working copies at once, accounts, and no secret for others to read."""

import urllib.error
import urllib.request

import pytest

from tests.conftest import TrackingServer


def test_nobody_gets_in_without_an_account(tracking_server: TrackingServer) -> None:
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(tracking_server.url)
    assert refusal.value.code == 401
