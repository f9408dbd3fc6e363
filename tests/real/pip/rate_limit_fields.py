"""Reads RateLimit and RateLimit-Policy by a parser of structured fields (RFC 9651) that knows nothing of the gateway."""

import sys
import urllib.error
import urllib.request

import http_sfv


def fields(url):
    try:
        response = urllib.request.urlopen(url)
    except urllib.error.HTTPError as refusal:
        response = refusal
    lists = []
    for name in ("RateLimit", "RateLimit-Policy"):
        parsed = http_sfv.List()
        parsed.parse(response.headers[name].encode())
        lists.append({item.value: dict(item.params) for item in parsed})
        assert len(lists[-1]) == len(parsed), response.headers[name]
    return response.status, *lists


gateway = sys.argv[1]

for left in (2, 1, 0):
    status, state, policy = fields(f"{gateway}/all")
    assert status == 200, status
    assert state["daily"].pop("t") <= 86400
    spike = state.pop("spike")
    assert 90 < spike["r"] < 100 and spike["t"] <= 60, spike
    assert state == {"daily": {"r": left}, "slots": {"r": 4}}, state
    assert policy == {
        "spike": {"q": 100, "w": 60},
        "daily": {"q": 3, "w": 86400},
        "slots": {"q": 5, "qu": "concurrent-requests"},
    }, policy

status, state, _ = fields(f"{gateway}/all")
assert status == 429, status
assert state["daily"]["r"] == 0 and 0 < state["daily"]["t"] <= 86400, state

status, state, policy = fields(f"{gateway}/largest")
assert state["n" * 63]["r"] == 999_999_999_999_998, state
assert policy["n" * 63] == {"q": 999_999_999_999_999, "w": 86400}, policy
