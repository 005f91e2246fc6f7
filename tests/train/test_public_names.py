"""What the trainer's package offers, and that its parts come without the libraries that they do not need."""

import subprocess
import sys

import pytest

import ssl_fast.train


def test_all_that_the_package_offers_is_there():
    for name in ssl_fast.train.__all__:
        assert getattr(ssl_fast.train, name) is not None
    assert set(ssl_fast.train.__all__) <= set(dir(ssl_fast.train))


@pytest.mark.long
def test_data_and_measures_need_no_lightning():
    code = """
import sys
from ssl_fast.train import View, build_method, knn_accuracy, load_dataset
assert not {"lightning", "tyro", "rich", "matplotlib"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
