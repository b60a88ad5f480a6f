"""The installation's own text: the same every time, bounded, and without the tests of the library."""

import pytest

from slmjax.data.config import SourceConfig
from slmjax.data.python_text import python_files
from slmjax.data.sources import read_documents
from slmjax.errors import UserError


def test_it_is_deterministic_bounded_and_prose_first():
    source = SourceConfig("python:stdlib?max_megabytes=2")
    documents = list(read_documents(source))
    assert documents == list(read_documents(source))
    assert 1e6 < sum(len(text.encode()) for text in documents) <= 2e6
    assert documents[0].startswith('The "assert" statement')
    assert any("import" in text and "def " in text for text in documents)


def test_files_are_the_librarys_own():
    files = python_files({})
    names = {path.name for path in files}
    assert {"json", "argparse.py"} <= names | {path.parent.name for path in files}
    assert not any({"test", "tests", "site-packages", "__pycache__"} & set(path.parts[-4:]) for path in files)
    assert sum(path.stat().st_size for path in files) <= 12e6


@pytest.mark.parametrize("query", ["max_megabytes=none", "max_megabytes=0", "max_megabytes=nan", "size=3"])
def test_a_wrong_query_is_refused(query):
    with pytest.raises(UserError, match="max_megabytes"):
        list(read_documents(SourceConfig(f"python:stdlib?{query}")))


def test_only_the_standard_library_is_known():
    with pytest.raises(UserError, match="python:stdlib"):
        list(read_documents(SourceConfig("python:numpy")))
