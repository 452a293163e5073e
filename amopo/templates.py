"""Public registry of the templates f(x, d): `list()`, `get(name)`, `register(name)`.

`f(x, d)` puts one objective into the user's message. `amopo.data.templates` has the classes behind these names.
"""

from amopo.data.templates import get_template as get
from amopo.data.templates import list_templates as list
from amopo.data.templates import register_template as register

__all__ = ["get", "list", "register"]
