"""Write the table of docs/dialects.md anew.

python scripts/make_dialects.py
"""

from pathlib import Path

import fnn

page = Path("docs/dialects.md")
head, _, _ = page.read_text().partition("| rule |")
page.write_text(head + fnn.dialects.table())
