"""An object as a page of its own: what is in it, and that it needs nothing else."""

from __future__ import annotations

import base64
import gzip
import re

import numpy as np
import pytest
from clouds import cloud

from splatgen import formats
from splatgen.formats import object_page, splat
from splatgen.formats.splat_file import of


def rows_in(text):
    """The splats that a page holds."""
    packed = re.search(r'<script id="splats"[^>]*>([^<]*)</script>', text).group(1)
    return np.frombuffer(gzip.decompress(base64.b64decode(packed)), splat._LAYOUT)


def test_a_page_holds_its_splats_upright_in_the_layout_of_a_splat(tmp_path):
    splats = cloud(7)
    path = tmp_path / "a-red-cube.html"
    formats.save(splats, path, clean=False)
    text = path.read_text()
    np.testing.assert_array_equal(rows_in(text), splat.rows(of(splats)))
    assert "<title>a red cube</title>" in text


def test_a_page_asks_nobody_for_anything(tmp_path):
    path = tmp_path / "object.html"
    formats.save(cloud(3), path, clean=False)
    text = path.read_text()
    assert "default-src 'none'" in text
    assert not re.search(r"https?:|//[a-z]+\.|\bfetch\(|XMLHttpRequest|\bimport\b|<link|src=", text)


def test_words_of_a_title_are_text():
    text = object_page.page(of(cloud(1)), '<img src=x onerror="1">', "a & b")
    assert "<img" not in text
    assert "&lt;img src=x onerror=&quot;1&quot;&gt;" in text
    assert 'content="a &amp; b"' in text


def test_it_is_exported_and_says_what_is_lost_and_is_not_read(tmp_path, cli):
    source, page = tmp_path / "in.ply", tmp_path / "out.html"
    formats.save(cloud(5, degree=2), source, clean=False)
    done = cli("export", source, page, "--keep-invisible")
    assert (done.code, done.out.strip()) == (0, str(page))
    assert "lost in .html: spherical harmonics beyond degree 0" in done.err
    assert len(rows_in(page.read_text())) == 5
    refused = cli("export", page, tmp_path / "back.ply")
    assert refused.code == 2
    assert "has no suffix of a splat format" in refused.err
    with pytest.raises(ValueError, match="no splat format has the suffix"):
        formats.load(page)
