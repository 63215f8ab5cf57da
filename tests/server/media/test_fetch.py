"""Downloads, from a server on this machine: which is why the tests say what is public."""

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from server.limits import Limits
from server.media.access import MediaAccess
from server.media.fetch import Fetcher, is_public
from server.media.unusable import Unusable

pytestmark = pytest.mark.anyio

EVERYWHERE = MediaAccess(domains=("*",))
Reply = Callable[[asyncio.StreamWriter], Awaitable[None]]


class Site:
    """Answers every request with what stands at its path, and remembers what was asked."""

    def __init__(self, replies: dict[str, bytes | Reply]) -> None:
        self.port = 0
        self.heads: list[str] = []
        self._replies = replies

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.heads.append(head)
        reply = self._replies[head.split(" ")[1]]
        try:
            if isinstance(reply, bytes):
                writer.write(reply)
                await writer.drain()
            else:
                await reply(writer)
        except ConnectionError:  # the client has enough
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(
    replies: dict[str, bytes | Reply], tls: ssl.SSLContext | None = None
) -> AsyncIterator[Site]:
    site = Site(replies)
    server = await asyncio.start_server(site.answer, "127.0.0.1", 0, ssl=tls)
    site.port = server.sockets[0].getsockname()[1]
    try:
        yield site
    finally:
        server.close()
        await server.wait_closed()


def ok(body: bytes, *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def moved(location: str) -> bytes:
    return f"HTTP/1.1 302 Found\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n".encode()


class Names:
    """A resolver that knows a few names, and counts."""

    def __init__(self, **names: Sequence[str]) -> None:
        self._names = {name.replace("_", "."): addresses for name, addresses in names.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        if host not in self._names:
            raise OSError("unknown")
        return self._names[host]


def local_fetcher(access: MediaAccess, names: Names, **options: object) -> Fetcher:
    """One for which 127.0.0.1, and no other address of this machine, is public."""
    return Fetcher(access, resolve=names, is_public=lambda a: a == "127.0.0.1", **options)


async def test_the_name_is_resolved_once_and_stays_in_the_host_header():
    names = Names(cdn_example_com=["127.0.0.1"])
    async with serving({"/a%20b?c=d": ok(b"body")}) as site:
        fetcher = local_fetcher(MediaAccess(domains=("Example.com",)), names)
        url = f"http://cdn.example.com:{site.port}/a%20b?c=d"
        assert await fetcher.fetch(url, 4) == b"body"
    assert names.asked == ["cdn.example.com"]
    assert f"host: cdn.example.com:{site.port}\r\n" in site.heads[0].lower()
    assert "accept-encoding: identity" in site.heads[0].lower()


async def test_the_next_address_is_tried_where_nobody_listens():
    names = Names(x_org=["127.0.0.2", "127.0.0.1"])
    async with serving({"/": ok(b"body")}) as site:
        fetcher = Fetcher(EVERYWHERE, resolve=names, is_public=lambda a: a.startswith("127."))
        assert await fetcher.fetch(f"http://x.org:{site.port}/", 9) == b"body"


async def test_tls_is_with_the_name(tmp_path: Path):
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout {key} -out {certificate} "
        "-subj /CN=x -addext subjectAltName=DNS:pictures.org".split(),
        check=True,
        capture_output=True,
    )
    server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_tls.load_cert_chain(certificate, key)
    asked: list[str | None] = []
    server_tls.sni_callback = lambda _socket, name, _context: asked.append(name)
    client_tls = ssl.create_default_context(cafile=str(certificate))
    names = Names(pictures_org=["127.0.0.1"], other_org=["127.0.0.1"])
    async with serving({"/": ok(b"body")}, server_tls) as site:
        fetcher = local_fetcher(EVERYWHERE, names, tls=client_tls)
        assert await fetcher.fetch(f"https://pictures.org:{site.port}/", 9) == b"body"
        with pytest.raises(Unusable, match="could not be fetched"):
            await fetcher.fetch(f"https://other.org:{site.port}/", 9)
    assert asked == ["pictures.org", "other.org"]


async def test_redirects_are_followed_three_times():
    names = Names(a_org=["127.0.0.1"], b_org=["127.0.0.1"])
    async with serving({}) as site:
        there = f"http://b.org:{site.port}/3"
        site._replies.update(
            {"/0": moved("/1"), "/1": moved("2?x"), "/2?x": moved(there), "/3": ok(b"body")}
        )
        fetcher = local_fetcher(EVERYWHERE, names)
        assert await fetcher.fetch(f"http://a.org:{site.port}/0", 9) == b"body"
        site._replies["/3"] = moved("/4")
        with pytest.raises(Unusable, match="could not be fetched"):
            await fetcher.fetch(f"http://a.org:{site.port}/0", 9)
    assert "/4" not in "".join(site.heads)


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://private.org/", "could not be fetched"),
        ("http://10.0.0.1/", "may not fetch from"),
        ("http://elsewhere.org/", "may not fetch from"),
        ("file:///etc/passwd", "not a valid URL"),
        ("http://u:p@a.org/", "not a valid URL"),
        ("//a.org\\@b.org/", "not a valid URL"),
        ("http://2130706433/", "not a valid URL"),
    ],
)
async def test_redirects_are_checked_like_the_url(location: str, reason: str):
    names = Names(a_org=["127.0.0.1"], private_org=["10.0.0.1"], elsewhere_org=["127.0.0.1"])
    names._names["10.0.0.1"] = ["10.0.0.1"]
    async with serving({"/": moved(location)}) as site:
        fetcher = local_fetcher(MediaAccess(domains=("a.org", "private.org")), names)
        with pytest.raises(Unusable, match=reason):
            await fetcher.fetch(f"http://a.org:{site.port}/", 9)
    assert len(site.heads) == 1


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1", "10.1.1.1"], ["10.1.1.1", "127.0.0.1"], ["::ffff:127.0.0.1"], [], ["junk"]],
)
async def test_every_address_of_a_name_has_to_be_public(addresses: list[str]):
    async with serving({"/": ok(b"body")}) as site:
        fetcher = local_fetcher(EVERYWHERE, Names(a_org=addresses))
        with pytest.raises(Unusable, match="could not be fetched"):
            await fetcher.fetch(f"http://a.org:{site.port}/", 9)
    assert site.heads == []


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254", "0.0.0.0"],
)
async def test_this_machine_is_not_public(host: str):
    async with serving({"/": ok(b"body")}) as site:
        with pytest.raises(Unusable, match="could not be fetched"):
            await Fetcher(EVERYWHERE).fetch(f"http://{host}:{site.port}/", 9)
    assert site.heads == []


@pytest.mark.parametrize(
    "url",
    [
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0x7f.0.0.1/",
        "http://0177.0.0.1/",
        "http://127.1/",
        "http://127.0.0.1./",
        "http://１２７.0.0.1/",
        "http://[fe80::1%25lo]/",
        "http://user@a.org/",
        "http://user:pass@a.org/",
        "http://a.org\\@b.org/",
        "http://a.org\t/",
        "http://a.org/\r\nx: y",
        "http://a.org/\0",
        "http://a b.org/",
        "http://a%2eorg/",
        "http://a;b.org/",
        "http://-a.org/",
        "http://a..org/",
        "http://a.org:0/",
        "http://a.org:99999/",
        "http://a.org:-1/",
        "http:///x",
        "http:a.org",
        "http://[::1",
        "http://" + "a" * 64 + ".org/",
        "http://" + "a." * 200 + "org/",
        "http://a.org/" + "x" * 70_000,
        "http://\ud800.org/",
        "https://",
    ],
)
async def test_odd_urls_are_not_even_resolved(url: str):
    names = Names()
    with pytest.raises(Unusable, match="is not a valid URL"):
        await local_fetcher(EVERYWHERE, names).fetch(url, 9)
    assert names.asked == []


async def test_only_allowed_hosts():
    names = Names()
    fetcher = local_fetcher(MediaAccess(domains=("*.example.com", "")), names)
    for host in ("example.org", "notexample.com", "example.com.evil.org", "com", "8.8.8.8"):
        with pytest.raises(Unusable, match="may not fetch from"):
            await fetcher.fetch(f"http://{host}/", 9)
    assert names.asked == []
    for host in ("example.com", "EXAMPLE.com.", "a.b.example.com"):
        with pytest.raises(Unusable, match="could not be fetched"):
            await fetcher.fetch(f"http://{host}/", 9)
    assert names.asked == ["example.com", "example.com.", "a.b.example.com"]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.0.0.1", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("192.0.0.8", False),
        ("198.18.0.1", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("0.0.0.0", False),
        ("::", False),
        ("::1", False),
        ("::ffff:8.8.8.8", False),
        ("::ffff:127.0.0.1", False),
        ("::7f00:1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("2001::1", False),
        ("2001:db8::1", False),
        ("fe80::1", False),
        ("fe80::1%1", False),
        ("fc00::1", False),
        ("fec0::1", False),
        ("ff0e::1", False),
        ("", False),
    ],
)
def test_which_addresses_are_public(address: str, expected: bool):
    assert is_public(address) == expected


async def test_too_large_a_body_is_not_read():
    sent = 0

    async def endless(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(bytes(1 << 16))
            sent += 1 << 16
            await writer.drain()

    names = Names(a_org=["127.0.0.1"])
    async with serving({"/": endless, "/one": ok(bytes((1 << 20) + 1))}) as site:
        fetcher = local_fetcher(EVERYWHERE, names)
        for path in ("/", "/one"):
            with pytest.raises(Unusable, match="is larger than 1 MiB"):
                await fetcher.fetch(f"http://a.org:{site.port}{path}", 1 << 20)
    assert sent < 32 << 20


async def test_slow_hosts_are_given_up():
    async def dripping(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)

    names = Names(a_org=["127.0.0.1"])
    async with serving({"/": dripping}) as site:
        fetcher = local_fetcher(EVERYWHERE, names, limits=Limits(fetch_timeout_s=0.3))
        with pytest.raises(Unusable, match="could not be fetched"):
            await fetcher.fetch(f"http://a.org:{site.port}/", 1 << 20)


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 404 Not Found\r\ncontent-length: 6\r\n\r\nsecret",
        b"HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        ok(b"body", "content-encoding: gzip"),
        b"SSH-2.0-OpenSSH\r\n",
        b"",
    ],
)
async def test_what_was_reached_is_not_told(reply: bytes):
    names = Names(a_org=["127.0.0.1"])
    async with serving({"/": reply}) as site:
        with pytest.raises(Unusable) as refusal:
            await local_fetcher(EVERYWHERE, names).fetch(f"http://a.org:{site.port}/", 99)
    assert refusal.value.reason == "could not be fetched"
