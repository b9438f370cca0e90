"""homelab/show/diagram.py in a browser: no text is cut, each can be read, by day and by night."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from homelab.show import diagram
from homelab.show.tree import TreeNode as Node
from tests.waiting import PATIENCE

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
HOLDERS = (
    Node("guest", "container 901 (ollama)", "new"),
    Node("guest", 'container 950 (jellyfin <b>&")', "gone"),
    Node(
        "guest",
        "VM 103 (漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字)",
        "changes",
        (Node("setting", "x-vga: on", "new"),),
    ),
)
OPTIONS = (
    Node("setting", "reset: bus → flr", "changes"),
    Node("setting", f"romfile: /usr/share/kvm/{'long' * 30}.rom", "gone"),
)
TREES = [
    Node(
        "host",
        f"pve (192.168.0.202): 6.17.2-1-pve, {'a cluster of many nodes, ' * 8}",
        children=(
            Node("setting", "ACS override: downstream", "new"),
            Node(
                "group",
                "IOMMU group 14",
                children=(
                    Node(
                        "card", "RTX 3090 [10de:2204] at 0000:0a:00, nvidia → vfio-pci", "changes", (*OPTIONS, *HOLDERS)
                    ),
                    Node(
                        "card", "RTX 3060 [10de:2504] at 0000:0b:00, nvidia", "gone", (Node("other", "nobody has it"),)
                    ),
                    Node("other", "0000:00:01.0 PCI bridge [1022:1234]"),
                ),
            ),
        ),
    ),
    Node("host", "other", children=(Node("other", "no card of NVIDIA's, and none in the settings"),)),
]
# Of each text: what stands there, its colour, that of the smallest box around it, and by how many pixels it leaves that box.
MEASURE = """<pre id="found"></pre><script>
const boxes = [...document.querySelectorAll("svg rect")].map(one => [one.getBBox(), getComputedStyle(one).fill]);
const found = [...document.querySelectorAll("svg text")].map(one => {
  const text = one.getBBox();
  const around = boxes.filter(([box]) => box.x <= text.x && box.y <= text.y + 6 && box.y + box.height >= text.y + 6)
    .filter(([box]) => box.x + box.width > text.x).sort((a, b) => a[0].width * a[0].height - b[0].width * b[0].height)[0];
  const [box, fill] = around;
  const out = Math.max(text.x + text.width - box.x - box.width, text.y + text.height - box.y - box.height);
  return {text: one.textContent, fill: getComputedStyle(one).fill, box: fill, out};
});
document.getElementById("found").textContent = JSON.stringify(found);
</script></body>"""


def luminance(colour: str) -> float:
    """As WCAG 2.2 defines it, of a colour such as rgb(1, 2, 3)."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser_no_text_is_cut_and_each_has_contrast(scheme: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(diagram.html(TREES, "homelab: homelab").replace("</body>", MEASURE), encoding="utf-8")
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    setting = f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"
    done = subprocess.run(
        [str(CHROMIUM), *arguments, setting, page.as_uri()],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    [shown] = re.findall(r'<pre id="found">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    found = json.loads(shown.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    texts = " ".join(one["text"] for one in found)
    assert "container 950 (jellyfin <b>&" in texts and "also in this group" in texts
    assert [one for one in found if one["out"] > 0] == []
    for one in found:
        lighter, darker = sorted((luminance(one["fill"]), luminance(one["box"])), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, one
    assert (luminance(found[0]["box"]) < 0.1) == (scheme == "dark")
