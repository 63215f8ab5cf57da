"""What the operator lets a client name besides data of its own: nothing, unless told."""

from dataclasses import dataclass
from pathlib import Path

ANY_DOMAIN = "*"


@dataclass(frozen=True, slots=True)
class MediaAccess:
    domains: tuple[str, ...] = ()  # with their subdomains; "*" is every public host
    local_root: Path | None = None  # files below it

    def allows_host(self, host: str) -> bool:
        """`host` is in lower case, as a parsed URL has it."""
        host = host.removesuffix(".")
        return any(
            domain == ANY_DOMAIN or host == domain or host.endswith(f".{domain}")
            for domain in (listed.lower().removeprefix("*.").strip(".") for listed in self.domains)
            if domain
        )
