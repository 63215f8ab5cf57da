"""Downloads a medium from a host that the operator allows, and from nowhere else.

A client's URL must not make this server reach what only this server can reach. So one parser reads
the URL for the check and for the connection; names are resolved once, every address has to be
public, and the connection goes to that very address, with the name only in the Host header and in
TLS. Redirects are few and checked alike. No proxies, cookies or credentials; and no words on what
was reached.
"""

import asyncio
import ipaddress
import re
import ssl
from collections.abc import Awaitable, Callable, Sequence

import httpx

from server.limits import DEFAULT_LIMITS, Limits
from server.media.access import MediaAccess
from server.media.resolve import Resolver
from server.media.unusable import NOT_FETCHED, Unusable, too_large

MAX_ADDRESSES = 4  # of one host that are tried

_REDIRECTS = {301, 302, 303, 307, 308}
_HEADERS = {"accept": "image/*, video/*", "accept-encoding": "identity", "user-agent": "deltaserve"}
_ODD = re.compile(r"[\x00-\x20\x7f\\]")
_NAME = re.compile(
    r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.?"
)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PUBLIC_IPV6 = ipaddress.ip_network("2000::/3")
_NOT_PUBLIC_IPV4 = ipaddress.ip_network("192.0.0.0/24")  # of protocols; Python calls parts global

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


def is_public(address: str) -> bool:
    """Whether anybody may reach `address`; no for what embeds an IPv4 address in an IPv6 one."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv4Address):
        return ip.is_global and not ip.is_multicast and ip not in _NOT_PUBLIC_IPV4
    return ip.is_global and ip in _PUBLIC_IPV6 and ip.sixtofour is None and ip.teredo is None


class Fetcher:
    """`resolve` and `is_public` are arguments for tests, whose servers are on this machine."""

    def __init__(
        self,
        access: MediaAccess,
        *,
        resolve: Resolve | None = None,
        is_public: Callable[[str], bool] = is_public,
        limits: Limits = DEFAULT_LIMITS,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._access = access
        self._resolve = resolve or Resolver()
        self._is_public = is_public
        self._limits = limits
        self._tls = tls

    async def fetch(self, url: str, max_bytes: int) -> bytes:
        """The body at `url`. Raises Unusable."""
        try:
            async with asyncio.timeout(self._limits.fetch_timeout_s):
                return await self._fetch(url, max_bytes)
        except (TimeoutError, OSError, httpx.HTTPError):
            raise Unusable(NOT_FETCHED) from None

    async def _fetch(self, text: str, max_bytes: int) -> bytes:
        url = self._checked(text)
        for _ in range(self._limits.max_redirects + 1):
            found = await self._get(url, max_bytes)
            if isinstance(found, bytes):
                return found
            url = self._checked(found, base=url)
        raise Unusable(NOT_FETCHED)

    def _checked(self, text: str, base: httpx.URL | None = None) -> httpx.URL:
        if _ODD.search(text):
            raise Unusable("is not a valid URL")
        try:
            url = httpx.URL(text) if base is None else base.join(text)
            host = url.raw_host.decode("ascii")
        except (httpx.InvalidURL, ValueError):
            raise Unusable("is not a valid URL") from None
        if url.scheme not in ("http", "https") or url.userinfo or not _is_plain(host):
            raise Unusable("is not a valid URL of a public host")
        if url.port is not None and not 1 <= url.port <= 65_535:
            raise Unusable("is not a valid URL")
        if not self._access.allows_host(host):
            raise Unusable("is on a host that this server may not fetch from")
        return url

    async def _get(self, url: httpx.URL, max_bytes: int) -> bytes | str:
        """The body, or where it is instead."""
        host = url.raw_host.decode("ascii")
        port = url.port or (443 if url.scheme == "https" else 80)
        addresses = await self._resolve(host, port)
        if not addresses or not all(self._is_public(address) for address in addresses):
            raise Unusable(NOT_FETCHED)
        if self._tls is None:
            self._tls = await asyncio.to_thread(httpx.create_ssl_context, trust_env=False)
        for address in addresses[:MAX_ADDRESSES]:
            try:
                return await self._get_from(address, url, max_bytes)
            except httpx.ConnectError:
                continue
        raise Unusable(NOT_FETCHED)

    async def _get_from(self, address: str, url: httpx.URL, max_bytes: int) -> bytes | str:
        assert self._tls is not None
        request = httpx.Request(
            "GET",
            url.copy_with(host=address),
            headers={**_HEADERS, "host": url.netloc.decode("ascii")},
            extensions={"sni_hostname": url.raw_host.decode("ascii").removesuffix(".")},
        )
        # A transport for each request: connections are not shared between names.
        async with httpx.AsyncHTTPTransport(verify=self._tls, trust_env=False) as transport:
            response = await transport.handle_async_request(request)
            try:
                if response.status_code in _REDIRECTS and "location" in response.headers:
                    return response.headers["location"]
                if response.status_code != 200 or "content-encoding" in response.headers:
                    raise Unusable(NOT_FETCHED)
                return await _body(response, max_bytes)
            finally:
                await response.aclose()


async def _body(response: httpx.Response, max_bytes: int) -> bytes:
    body = bytearray()
    async for part in response.aiter_raw():
        body += part
        if len(body) > max_bytes:
            raise too_large(max_bytes)
    return bytes(body)


def _is_plain(host: str) -> bool:
    """A name, or an address in its usual spelling: no octal, hexadecimal or short numbers."""
    if len(host) > 253:
        return False
    if ":" in host or _NUMBER.fullmatch(host.removesuffix(".").rpartition(".")[2]):
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return False
        return "%" not in host
    return _NAME.fullmatch(host) is not None
