"""The models of the worlds, by the name of their folder."""

from pathlib import Path

BUNDLED = {place.parent.name: place for place in sorted((Path(__file__).parent.parent / "worlds").glob("*/model"))}
