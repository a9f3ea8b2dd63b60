"""docs/api.md is what the docstrings say."""

import runpy


def test_the_page_is_up_to_date(request):
    script = runpy.run_path(str(request.config.rootpath / "scripts" / "make_api.py"))
    written = (request.config.rootpath / "docs" / "api.md").read_text()
    assert script["page"]() == written, "run: python scripts/make_api.py"
