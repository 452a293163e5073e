"""The table of tested versions says what is installed in this environment."""

import pytest
from tested_versions import axolotl_versions, check_installed

pytest.importorskip("axolotl.core.trainers.base", reason="axolotl is not installed here; run make test-axolotl")


@pytest.mark.parametrize("package", sorted(axolotl_versions()))
def test_tested_versions_are_those_that_are_installed(package):
    check_installed(package, axolotl_versions()[package])
