"""Models by name or file.

`shape_of(name)` takes a built-in name ("Qwen2.5-32B"), a folder with `config.json`, or that file.

`BUILT_IN` has the sizes that publishers state, so that no network is needed. `read_config(model)` reads a folder or a
file.
"""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import Any

from amopo.memory.shapes import ModelShape, shape_from_config

# What follows a name where the sizes are those of the model without it.
_VARIANT = re.compile(r"(-24b)?(-instruct|-it|-pt|-base)?(-\d{4}|-v0\.3)?$")


def _built_in() -> dict[str, ModelShape]:
    """Sizes as the publishers' config.json files state them."""
    table = """
        Qwen2.5-0.5B    qwen2        24   896  4864  14  2  64 151936 tied
        Qwen2.5-1.5B    qwen2        28  1536  8960  12  2 128 151936 tied
        Qwen2.5-3B      qwen2        36  2048 11008  16  2 128 151936 tied
        Qwen2.5-7B      qwen2        28  3584 18944  28  4 128 152064 -
        Qwen2.5-14B     qwen2        48  5120 13824  40  8 128 152064 -
        Qwen2.5-32B     qwen2        64  5120 27648  40  8 128 152064 -
        Qwen2.5-72B     qwen2        80  8192 29568  64  8 128 152064 -
        Qwen3-0.6B      qwen3        28  1024  3072  16  8 128 151936 tied
        Qwen3-1.7B      qwen3        28  2048  6144  16  8 128 151936 tied
        Qwen3-4B        qwen3        36  2560  9728  32  8 128 151936 tied
        Qwen3-8B        qwen3        36  4096 12288  32  8 128 151936 -
        Qwen3-14B       qwen3        40  5120 17408  40  8 128 151936 -
        Qwen3-32B       qwen3        64  5120 25600  64  8 128 151936 -
        Llama-3-8B      llama        32  4096 14336  32  8 128 128256 -
        Llama-3-70B     llama        80  8192 28672  64  8 128 128256 -
        Llama-3.2-1B    llama        16  2048  8192  32  8  64 128256 tied
        Llama-3.2-3B    llama        28  3072  8192  24  8 128 128256 tied
        Llama-3.1-8B    llama        32  4096 14336  32  8 128 128256 -
        Llama-3.1-70B   llama        80  8192 28672  64  8 128 128256 -
        Llama-3.3-70B   llama        80  8192 28672  64  8 128 128256 -
        Llama-3.1-405B  llama       126 16384 53248 128  8 128 128256 -
        Mistral-7B      mistral      32  4096 14336  32  8 128  32768 -
        Mistral-Nemo    mistral      40  5120 14336  32  8 128 131072 -
        Mistral-Small   mistral      40  5120 32768  32  8 128 131072 -
        Gemma-2B        gemma        18  2048 16384   8  1 256 256000 tied
        Gemma-7B        gemma        28  3072 24576  16 16 256 256000 tied
        Gemma-2-2B      gemma2       26  2304  9216   8  4 256 256000 tied
        Gemma-2-9B      gemma2       42  3584 14336  16  8 256 256000 tied
        Gemma-2-27B     gemma2       46  4608 36864  32 16 128 256000 tied
        Gemma-3-1B      gemma3_text  26  1152  6912   4  1 256 262144 tied
        Gemma-3-4B      gemma3_text  34  2560 10240   8  4 256 262208 tied
        Gemma-3-12B     gemma3_text  48  3840 15360  16  8 256 262208 tied
        Gemma-3-27B     gemma3_text  62  5376 21504  32 16 128 262208 tied
    """
    shapes = {}
    for line in table.split("\n"):
        if not line.strip():
            continue
        name, model_type, *sizes, tied = line.split()
        layers, hidden, intermediate, heads, kv_heads, head_dim, vocab = map(int, sizes)
        shapes[name] = ModelShape(
            name, model_type, layers, hidden, intermediate, heads, kv_heads, head_dim, vocab, tied == "tied",
            softcap=30.0 if model_type == "gemma2" else None,
            attention_softcap=50.0 if model_type == "gemma2" else None,
            window={"gemma2": 4096, "gemma3_text": 512 if name == "Gemma-3-1B" else 1024}.get(model_type),
        )  # fmt: skip
    return shapes


BUILT_IN = _built_in()


def shape_of(model: str) -> ModelShape:
    """A built-in shape by name (any case, with or without its publisher), or that of a folder or a config.json.

    Raises:
        ValueError: neither; the message lists what comes close.
    """
    wanted = model.rsplit("/", 1)[-1].lower().removeprefix("meta-")
    names = {name.lower(): name for name in BUILT_IN}
    if (name := names.get(_VARIANT.sub("", wanted))) is not None:
        return BUILT_IN[name]
    found = read_config(model)
    if found is None:
        close = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
        hint = f"; did you mean {', '.join(names[name] for name in close)}?" if close else ""
        raise ValueError(
            f"model {model!r} is neither a built-in shape nor a folder with a config.json, nor such a file{hint} "
            f"(built in: {', '.join(BUILT_IN)})"
        )
    return shape_from_config(*found)


def read_config(model: str) -> tuple[dict[str, Any], str] | None:
    """The configuration of a folder or a file and the model's name, or None where there is no such file.

    Raises:
        ValueError: the file holds no configuration.
    """
    path = Path(model).expanduser()
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not valid JSON ({error})") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file}: must hold a configuration (an object), not {type(config).__name__}")
    return config, path.name if path.is_dir() else path.parent.name or path.name
