"""What the documents say of the code: the page of configuration keys, the table of equations, links between pages.

    documents.py --write      renews docs/configuration.md and the table of equations in docs/architecture.md
"""

import re
import sys
import unittest
from pathlib import Path

from command import USAGE, Case, laterna

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
EQUATION = re.compile(r"// eq (\d+)(?:: |$)")
BEGIN, END = "<!-- equations -->\n", "<!-- /equations -->"
MEANING = {
    1: "charge", 2: "fire", 3: "reset", 4: "loss", 5: "x_t", 6: "input current of every spiking step",
    7: "the blocks", 8: "average over the spiking steps", 9: "logits of the selection network",
    10: "lateral correction", 11: "corrected logits", 12: "the k largest", 13: "weighted sum of the candidates",
}


def equations():
    """Returns the table of the lines that end in a comment `// eq N` in the folder model."""
    places = {number: [] for number in MEANING}
    for path in sorted((ROOT / "model").rglob("*")):
        if path.suffix not in (".h", ".cpp", ".cu"):
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if found := EQUATION.search(line):
                place = path.relative_to(ROOT)
                places[int(found[1])].append(f"[`{place}:{number}`](../{place}#L{number})")
    rows = [f"| {number} | {MEANING[number]} | {', '.join(where)} |" for number, where in places.items()]
    return "\n".join(["| equation | | computed in |", "|---|---|---|", *rows]) + "\n"


class Documents(Case):
    def test_configuration_page_is_what_the_program_says(self):
        out = self.run_laterna("config", "--explain").out
        self.assertEqual((DOCS / "configuration.md").read_text(), out)

    def test_one_key_is_explained(self):
        out = self.run_laterna("config", "--explain", "training.batch").out
        self.assertTrue(out.startswith("training.batch = 128\n"), out)
        self.refuses("config", "--explain", "training.bacth", status=USAGE, says=["training.bacth", "training.batch"])

    def test_every_equation_has_its_line(self):
        text = (DOCS / "architecture.md").read_text()
        table = text[text.index(BEGIN) + len(BEGIN):text.index(END)]
        self.assertEqual(table, equations())
        for row in table.splitlines()[2:]:
            self.assertIn("model/", row)

    def test_links_lead_somewhere(self):
        for page in (*DOCS.glob("*.md"), *ROOT.glob("*.md"), ROOT / "tests" / "reference" / "README.md"):
            for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
                if not target.startswith("http"):
                    self.assertTrue((page.parent / target).exists(), f"{page}: {target}")


def write():
    (DOCS / "configuration.md").write_text(laterna("config", "--explain").out)
    page = DOCS / "architecture.md"
    text = page.read_text()
    page.write_text(text[:text.index(BEGIN) + len(BEGIN)] + equations() + text[text.index(END):])


if __name__ == "__main__":
    write() if sys.argv[1:] == ["--write"] else unittest.main()
