"""Weights behind share links, addresses that name no file and may stop to work."""

from pathlib import Path
from urllib.parse import urlsplit

import torch

from .checkpoint import how_to_load


def is_share_link(url: str | None) -> bool:
    """Return whether an address ends in a folder, so that nothing downloads under the name of a file."""
    return bool(url) and urlsplit(url).path.endswith("/")


def fetch(url: str, variant: str) -> str:
    """Download the file behind a share link, once, and return its path in the folder of torch.hub.

    Raises:
        RuntimeError: it cannot be had, or a page came in its place; the message says how to do it by hand.
    """
    path = Path(torch.hub.get_dir(), "checkpoints", f"{Path(urlsplit(url).path).name}.pth")
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path))
            with path.open("rb") as file:
                if file.read(1) == b"<":
                    path.unlink()
                    raise OSError("a page came in place of the file")
        except OSError as error:
            page = url.split("?")[0]
            raise RuntimeError(
                f"cannot download the weights of {variant} ({error}): open {page} in a browser, save the file, and "
                f"{how_to_load(variant)}"
            ) from error
    return str(path)
