"""LLaMA-Factory with fused log-probs in its DPO stage, and with AMoPO.

    from amopo.integrations import llamafactory
    llamafactory.install()

or, instead of `llamafactory-cli train x.yaml`:

    python -m amopo.integrations.llamafactory train x.yaml

See docs/integrations/llamafactory.md. Importing this package does not import LLaMA-Factory; `install` does.
"""

from amopo.integrations.llamafactory.installation import TESTED, Installation, check_host, install

__all__ = ["TESTED", "Installation", "check_host", "install"]
