"""Hook of mkdocs: turn links that leave `docs` into links to the repository's page of that file."""

import re
from pathlib import Path

LINK = re.compile(r"\]\((\.\./[^)#\s]+)")


def on_page_markdown(markdown, page, config, files):
    """Rewrite relative links that leave `docs`; one whose file is missing stays, and mkdocs warns of it."""
    docs, here = Path(config.docs_dir), Path(page.file.abs_src_path).parent

    def rewritten(link: re.Match[str]) -> str:
        target = (here / link[1]).resolve()
        if target.is_relative_to(docs) or not target.exists():
            return link[0]
        return f"]({config.repo_url.rstrip('/')}/blob/main/{target.relative_to(docs.parent)}"

    return LINK.sub(rewritten, markdown)
