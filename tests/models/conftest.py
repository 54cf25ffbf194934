import family_wan_i2v
import pytest
import wan


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """Directories of random-weight Wan pipelines, each built when a test first needs it."""

    class Places(dict):
        def __missing__(self, name):
            self[name] = tmp_path_factory.mktemp(name)
            wan.BUILD[name]().save_pretrained(self[name])
            return self[name]

    return Places()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Source pictures of two prompts, one each."""
    paths = [tmp_path_factory.mktemp("pictures") / f"{n}.png" for n in range(2)]
    for image, path in zip(family_wan_i2v.IMAGES, paths, strict=False):
        image.save(path)
    return [(path,) for path in paths]
