"""The limits that hold for every attack: it ends, it stays off the network, and it asks nobody."""

import socket

import pytest

from .hostile import ends_within


@pytest.fixture(autouse=True)
def within_limits(monkeypatch):
    connect = socket.socket.connect

    def connect_here(self, address):
        assert isinstance(address, str) or address[0] in ("127.0.0.1", "::1"), f"it connects to {address}"
        return connect(self, address)

    def ask(*_):
        raise AssertionError("somebody was asked")

    monkeypatch.setattr(socket.socket, "connect", connect_here)
    monkeypatch.setattr("builtins.input", ask)
    with ends_within(100):
        yield
