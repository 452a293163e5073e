"""The table of tested versions says what is installed in this environment."""

import pytest
from tested_versions import check_installed, llamafactory_versions

pytest.importorskip("llamafactory.hparams", reason="LLaMA-Factory is not installed here; run make test-llamafactory")


@pytest.mark.parametrize("package", sorted(llamafactory_versions()))
def test_tested_versions_are_those_that_are_installed(package):
    check_installed(package, llamafactory_versions()[package])
