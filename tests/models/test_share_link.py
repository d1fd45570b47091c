"""Weights behind share links: addresses that name no file, and may lead nowhere."""

import http.server
import threading

import pytest
import timm
import torch

import saccade  # noqa: F401  (registers the models)

from ..fill import load_golden, official_state


class Share(http.server.BaseHTTPRequestHandler):
    """A file share: /f/<id>/ leads to the file behind it, or shows a page, or is gone."""

    files: dict[str, bytes]

    def do_GET(self):
        path = self.path.split("?")[0]
        if path.startswith("/f/file"):
            self.send_response(302)
            self.send_header("Location", "/seafhttp/agent.pth")
            self.end_headers()
        elif path in self.files:
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.files[path])))
            self.end_headers()
            self.wfile.write(self.files[path])
        else:
            self.send_error(404)

    def log_message(self, *args):
        pass


@pytest.fixture
def share(tmp_path, monkeypatch):
    """Serve a released file and a page; return the address, and the name and state dict behind the file."""
    golden = load_golden("agent", "agent_deit_t")
    state = official_state(golden)
    torch.save({"model": state}, tmp_path / "agent.pth")
    files = {
        "/seafhttp/agent.pth": (tmp_path / "agent.pth").read_bytes(),
        "/f/page/": b"<!DOCTYPE html>\n<html></html>",
    }
    monkeypatch.setattr(Share, "files", files, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Share)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/f", golden["model"], state
    server.shutdown()
    server.server_close()


def test_share_link(share, monkeypatch):
    """A link that names no file is followed once; then the file is there."""
    address, name, state = share
    for _ in range(2):
        overlay = {"url": f"{address}/file57e0/?dl=1"}
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
        assert torch.equal(model.head.fc.weight, state["head.weight"])
        monkeypatch.setattr(Share, "files", {})


@pytest.mark.parametrize("what", ["page", "gone"])
def test_share_link_without_the_file(what, share, tmp_path):
    address, name, _ = share
    overlay = {"url": f"{address}/{what}/?dl=1"}
    message = rf"open {address}/{what}/ in a browser, .*pretrained_cfg_overlay=dict\(file=FILE\).* model\.weights=FILE "
    with pytest.raises(RuntimeError, match=f"cannot download the weights of {name} .*{message}"):
        timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
    assert not list((tmp_path / "cache").rglob("*.pth"))


def test_a_given_state_dict_needs_no_link(share):
    address, name, state = share
    overlay = {"url": f"{address}/gone/?dl=1", "state_dict": state}
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
    assert torch.equal(model.head.fc.weight, state["head.weight"])
    assert "state_dict" not in model.pretrained_cfg
