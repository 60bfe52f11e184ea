"""HTTP downloads from public archives: several at once but never faster than agreed, retried, complete or refused."""

from __future__ import annotations

import email.utils
import http.client
import random
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import defaultdict
from collections.abc import Callable
from typing import TypeVar


Checked = TypeVar("Checked")

USER_AGENT = "structure-aligned (python-urllib)"
_CHUNK = 1 << 16
# Server errors that pass, and what asks for patience; other answers of the 4xx kind stay what they are.
_PASSING = (408, 425, 429, 500, 502, 503, 504)


class DownloadError(Exception):
    """
    Something could not be had.

    Args:
        reason (`str`): Why, in a few words.
        passing (`bool`): Whether it may go better next time.
        wait (`float`, *optional*): Seconds for which the server wants no requests.
    """

    def __init__(self, reason: str, passing: bool = False, wait: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.passing, self.wait = reason, passing, wait


class Downloader:
    """
    Downloads for several threads, which together keep to one pace for each host.

    Args:
        delay (`float`, *optional*, defaults to 0.1): Seconds between the starts of two requests to a host.
        timeout (`float`, *optional*, defaults to 30): Seconds without a byte.
        max_seconds (`float`, *optional*, defaults to 600): For one file, however slowly it drips.
        max_bytes (`int`, *optional*, defaults to 1 GiB): Of one file.
        retries (`int`, *optional*, defaults to 4): After the first attempt.
        backoff (`float`, *optional*, defaults to 1): Seconds before the first retry, doubled for each further one.
        max_wait (`float`, *optional*, defaults to 120): Longest wait that a `Retry-After` may ask for; for longer
            ones the file is given up.
        user_agent (`str`, *optional*): Archives like to see who asks, best with an address.
    """

    def __init__(
        self,
        delay: float = 0.1,
        timeout: float = 30.0,
        max_seconds: float = 600.0,
        max_bytes: int = 1 << 30,
        retries: int = 4,
        backoff: float = 1.0,
        max_wait: float = 120.0,
        user_agent: str = USER_AGENT,
    ) -> None:
        positive = {"timeout": timeout, "max_seconds": max_seconds, "max_bytes": max_bytes}
        for name, value in positive.items():
            if not value > 0:
                raise ValueError(f"{name} is {value}; expected more than 0.")
        for name, value in {"delay": delay, "retries": retries, "backoff": backoff, "max_wait": max_wait}.items():
            if not value >= 0:
                raise ValueError(f"{name} is {value}; expected 0 or more.")
        self.delay, self.timeout, self.max_seconds, self.max_bytes = delay, timeout, max_seconds, max_bytes
        self.retries, self.backoff, self.max_wait, self.user_agent = retries, backoff, max_wait, user_agent
        self._lock = threading.Lock()
        self._not_before: dict[str, float] = defaultdict(lambda: -float("inf"))
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End all waiting, in every thread, with a [`DownloadError`]."""
        self._stopped.set()

    def get(self, url: str, check: Callable[[bytes], Checked]) -> Checked:
        """
        What `check` makes of the content of a URL.

        Args:
            check (`Callable`): Raises `ValueError` for content that is not what it should be. That is asked for once
                more, as it may have been damaged on the way, and then believed.

        Raises:
            DownloadError: After all retries; with the last reason.
        """
        host = urllib.parse.urlsplit(url).netloc
        refused = False
        for attempt in range(self.retries + 1):
            try:
                self._wait_for_turn(host)
                return check(self._read(url))
            except ValueError as error:
                last = DownloadError(str(error), passing=not refused)
                refused = True
            except DownloadError as error:
                last = error
            if last.wait is not None:
                if last.wait > self.max_wait:
                    last.reason += f", which is longer than max_wait ({self.max_wait:g} s)"
                    break
                self._hold(host, last.wait)
            if not last.passing or attempt == self.retries:
                break
            if last.wait is None:
                # Not all threads at once again.
                self._sleep(self.backoff * 2**attempt * random.uniform(0.5, 1.5))
        attempts = f" ({attempt + 1} attempts)" if attempt else ""
        raise DownloadError(last.reason + attempts)

    def _wait_for_turn(self, host: str) -> None:
        while True:
            with self._lock:
                now = time.monotonic()
                if now >= self._not_before[host]:
                    self._not_before[host] = now + self.delay
                    return
                wait = self._not_before[host] - now
            self._sleep(wait)

    def _hold(self, host: str, seconds: float) -> None:
        """Let no thread ask the host before so many seconds have passed."""
        with self._lock:
            self._not_before[host] = max(self._not_before[host], time.monotonic() + seconds)

    def _sleep(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise DownloadError("interrupted")

    def _read(self, url: str) -> bytes:
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise DownloadError(f"not an http(s) address: {url!r}")
        # Compressed on the way, the length would say nothing of the content.
        headers = {"User-Agent": self.user_agent, "Accept-Encoding": "identity"}
        until = time.monotonic() + self.max_seconds
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=self.timeout) as answer:
                data = bytearray()
                while chunk := answer.read1(_CHUNK):
                    data += chunk
                    if len(data) > self.max_bytes:
                        raise DownloadError(f"more than {self.max_bytes:,} bytes")
                    if time.monotonic() > until:
                        raise DownloadError(f"not complete after {self.max_seconds:g} s", passing=True)
                    if self._stopped.is_set():
                        raise DownloadError("interrupted")
                expected = answer.headers.get("Content-Length")
        except urllib.error.HTTPError as error:
            error.close()
            wait = _seconds(error.headers.get("Retry-After")) if error.code in _PASSING else None
            asked = f", asks to wait {wait:g} s" if wait is not None else ""
            known = " (no such entry, or withdrawn)" if error.code in (404, 410) else ""
            raise DownloadError(
                f"HTTP {error.code} {error.reason}{known}{asked}", error.code in _PASSING, wait
            ) from error
        except TimeoutError as error:
            raise DownloadError(f"no answer for {self.timeout:g} s", passing=True) from error
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            reason = getattr(error, "reason", None) or error
            if isinstance(reason, TimeoutError):
                raise DownloadError(f"no answer for {self.timeout:g} s", passing=True) from error
            raise DownloadError(f"no connection: {reason or type(error).__name__}", passing=True) from error
        if re.fullmatch("[0-9]{1,18}", expected or "") and len(data) != int(expected):
            raise DownloadError(f"cut off after {len(data):,} of {int(expected):,} bytes", passing=True)
        return bytes(data)


def _seconds(retry_after: str | None) -> float | None:
    """The value of a `Retry-After` header: seconds, or a date."""
    if retry_after is None:
        return None
    try:
        if retry_after.strip().isdigit():
            return float(retry_after)
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, TypeError, IndexError, OverflowError):  # what the parser raises of nonsense
        return None
