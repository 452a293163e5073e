"""Where the two packages stand, and how the C++ operations are built: `amopo_kernels._C` from csrc/cpu.

They are built where torch and a C++ compiler are there (`pip install --no-build-isolation -e .`), else the package is
pure Python and says why. AMOPO_SKIP_CPP=1 leaves them out on purpose; AMOPO_REQUIRE_CPP=1 makes a failure an error;
MAX_JOBS bounds the number of compilers at a time. The kernel sources are compiled once per CPU capability, each with
its own flags; which one runs is decided at run time.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import setuptools
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

OLDEST_SETUPTOOLS = 77  # as in pyproject.toml, which pip does not read for this with --no-build-isolation
if int(setuptools.__version__.split(".")[0]) < OLDEST_SETUPTOOLS:
    sys.exit(
        f"amopo's build needs setuptools {OLDEST_SETUPTOOLS} or newer, found {setuptools.__version__}: "
        "pip install -U setuptools wheel"
    )

SOURCES = Path("csrc/cpu")
# Compiled once per capability; everything else once, for any CPU of the architecture.
KERNELS = ("attention_kernel.cpp", "row_kernel.cpp", "segments_kernel.cpp")
X86 = platform.machine().lower() in ("x86_64", "amd64")
# Ascending: where two objects hold the same inline function, the linker keeps the first.
CAPABILITIES = {"DEFAULT": []}
if X86:
    CAPABILITIES["AVX2"] = ["-mavx2", "-mfma", "-mf16c", "-DCPU_CAPABILITY_AVX2"]
    CAPABILITIES["AVX512"] = [
        *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c", "-DCPU_CAPABILITY_AVX512"),
    ]


def enabled(name: str) -> bool:
    return os.environ.get(name, "0").lower() not in ("", "0", "false", "no")


REQUIRED = enabled("AMOPO_REQUIRE_CPP")


def why_not() -> str | None:
    """What keeps the C++ operations from being built, or None."""
    if enabled("AMOPO_SKIP_CPP"):
        return "AMOPO_SKIP_CPP is set"
    if sys.platform not in ("linux", "darwin"):
        return f"{sys.platform} is not supported"
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        return f"no C++ compiler ({compiler}) was found"
    try:
        import torch  # noqa: F401
    except ImportError as error:
        return f"torch is not there at build time ({error}); install it first and use pip install --no-build-isolation"
    return None


class BuildOperations(build_ext):
    """Compiles each object with the flags of its capability, several at a time."""

    def build_extension(self, ext: Extension) -> None:
        import torch
        from torch.utils import cpp_extension

        common = [
            *("-std=c++20", "-O3", "-g0", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden"),
            *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-Wall", "-Wno-unknown-pragmas"),
            *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),  # false alarms of GCC 12's AVX-512 intrinsics
            f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
            f'-DAMOPO_TORCH_VERSION="{torch.__version__.split("+")[0]}"',
            *(["-DAMOPO_HAVE_AVX"] if X86 else []),
        ]
        if sys.platform == "linux":
            # Compiled with OpenMP but not linked with it: its symbols come from the copy that torch brings along, so
            # that there is one pool of threads, of torch's size.
            common.append("-fopenmp")
        jobs = [(name, "DEFAULT", []) for name in ext.sources if Path(name).name not in KERNELS]
        kernels = [name for name in ext.sources if Path(name).name in KERNELS]
        jobs += [(name, capability, flags) for capability, flags in CAPABILITIES.items() for name in kernels]

        def compile_one(job: tuple[str, str, list[str]]) -> list[str]:
            source, capability, flags = job
            folder = Path(self.build_temp, capability)
            folder.mkdir(parents=True, exist_ok=True)
            return self.compiler.compile(
                [source],
                output_dir=str(folder),
                include_dirs=[str(SOURCES), *cpp_extension.include_paths(), *self.compiler.include_dirs],
                extra_postargs=[*common, f"-DCPU_CAPABILITY={capability}", *flags],
                depends=ext.depends,
            )

        workers = min(len(jobs), int(os.environ.get("MAX_JOBS", 0)) or os.cpu_count() or 1)
        with ThreadPoolExecutor(workers) as pool:
            objects = [name for names in pool.map(compile_one, jobs) for name in names]
        self.compiler.link_shared_object(
            objects,
            self.get_ext_fullpath(ext.name),
            libraries=["c10", "torch_cpu"],
            library_dirs=cpp_extension.library_paths(),
            export_symbols=self.get_export_symbols(ext),
            extra_postargs=["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else [],
            build_temp=self.build_temp,
            target_lang="c++",
        )


def extensions() -> list[Extension]:
    reason = why_not()
    if reason is not None:
        if REQUIRED:
            raise SystemExit(f"amopo: AMOPO_REQUIRE_CPP is set, but the C++ operations cannot be built: {reason}")
        print(f"amopo: without C++ operations, the eager ones run: {reason}", file=sys.stderr)
        return []
    return [
        Extension(
            "amopo_kernels._C",
            sources=sorted(str(path) for path in SOURCES.glob("*.cpp")),
            depends=sorted(str(path) for path in SOURCES.glob("*.h")),
            language="c++",
            optional=not REQUIRED,  # a compiler that fails leaves a package without _C, with a warning
        )
    ]


setup(
    packages=[*find_packages(include=["amopo", "amopo.*"]), *find_packages("kernels")],
    package_dir={"amopo": "amopo", "amopo_kernels": "kernels/amopo_kernels"},
    package_data={"amopo": ["py.typed"], "amopo_kernels": ["py.typed"]},
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildOperations},
)
