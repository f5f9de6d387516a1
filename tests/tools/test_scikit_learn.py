"""scikit-learn's own tests of randomized_svd on ours, and its estimators, unmodified, inside patch("sklearn")."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from laser_kernels import testing
from laser_kernels.compat import patch

pytest.importorskip("sklearn", reason="scikit-learn comes with make test-tools")


def test_its_own_tests_pass(tmp_path):
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "patched_sklearn", "-c", os.devnull, "--rootdir", tmp_path]
    run = subprocess.run(
        [*map(str, command), "-k", "randomized", "--pyargs", "sklearn.utils.tests.test_extmath"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    passed, decompositions = (int(re.search(p, run.stdout)[1]) for p in (r"(\d+) passed", r"laser_kernels: (\d+)"))
    assert passed >= 100 and decompositions >= passed  # most of them compare two drivers


def test_estimators():
    from sklearn.decomposition import PCA, TruncatedSVD

    a = testing.llm_like(300, 200).double().numpy()
    pca = PCA(8, svd_solver="randomized", random_state=0)  # leaves the how to randomized_svd
    literal = TruncatedSVD(8, random_state=0)  # says n_iter=5
    own = pca.fit(a).singular_values_, literal.fit(a).singular_values_
    exact = np.linalg.svd(a - a.mean(0), compute_uv=False)[:8]
    with patch("sklearn"):
        ours = pca.fit(a).singular_values_
        np.testing.assert_allclose(literal.fit(a).singular_values_, own[1], rtol=1e-12)
    assert 0 < np.abs(ours - exact).max() < np.abs(own[0] - exact).max()


def test_large_matrix(compare):
    from sklearn.utils import extmath

    a = testing.llm_like(4096, 1024)

    def decomposed():
        u, s, vh = extmath.randomized_svd(a.numpy(), 64, random_state=0)
        return torch.from_numpy(u * s @ vh)

    def patched():
        with patch("sklearn"):
            return decomposed()

    compare("randomized_svd, 4096x1024, 64 components", a, 64, decomposed, patched)
