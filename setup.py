"""Where the two packages stand: `amopo` in the root, `amopo_kernels` in kernels/."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["amopo", "amopo.*"]), *find_packages("kernels")],
    package_dir={"amopo": "amopo", "amopo_kernels": "kernels/amopo_kernels"},
    package_data={"amopo": ["py.typed"], "amopo_kernels": ["py.typed"]},
)
