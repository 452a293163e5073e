"""The token trie of one sample: every token that several sequences share stands in it once.

Contract
--------
`build(sample, sharing)` returns the sample's `Forest`: nodes, each a run of tokens that is not branched, in depth-first
order, and per sequence (objective, chosen | rejected) the nodes of its response. What may be shared:

| sharing | sequences that share |
|---|---|
| "none" | none: 2K trees of one node |
| "pair" | the two responses of one objective: its prompt, and the beginning that chosen and rejected have in common |
| "tree" | all 2K: also what the K prompts begin with |

Sharing is found on token ids, never assumed from text: tokenisers merge across boundaries. A response always begins a
node of its own, so a node is prompt or response of a sequence as a whole. Loops run over nodes; tokens are compared as
slices of lists, in C.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from amopo.packing.sample import TokenizedSample

SHARING = ("none", "pair", "tree")


@dataclass(eq=False, slots=True)
class Node:
    """A run of tokens without branches. `depth`: position of its first token. `is_response`: of some sequence."""

    tokens: list[int]
    parent: Node | None
    depth: int = 0
    children: list[Node] = field(default_factory=list)
    is_response: bool = False
    start: int = 0  # of its tokens in the packed row, counted from the first of the sample
    stop: int = 0  # of its whole subtree


@dataclass(frozen=True, slots=True)
class Forest:
    """nodes: depth-first. responses: per sequence, (objective, chosen | rejected), the nodes of its response."""

    nodes: list[Node]
    responses: list[list[Node]]
    num_tokens: int

    @property
    def num_rows(self) -> int:
        """Rows of the head: tokens that are part of a response."""
        return sum(len(node.tokens) for node in self.nodes if node.is_response)


def check_sharing(sharing: str) -> None:
    """Raise for a layout that does not exist."""
    if sharing not in SHARING:
        raise ValueError(f"sharing={sharing!r} is not known; known: {', '.join(map(repr, SHARING))}")


def common_length(a: list[int], b: list[int]) -> int:
    """How many tokens two lists have in common at their beginning."""
    length = min(len(a), len(b))
    if a[:length] == b[:length]:
        return length
    same, differs = 0, length  # the first `same` tokens are equal, the first `differs` are not
    while differs - same > 1:
        middle = (same + differs) // 2
        if a[same:middle] == b[same:middle]:
            same = middle
        else:
            differs = middle
    return same


def _split(node: Node, at: int) -> None:
    """Give the first `at` tokens to a new node above; `node` keeps the rest, and what was said of its end holds."""
    upper = Node(node.tokens[:at], node.parent, node.depth, [node], node.is_response)
    siblings = node.parent.children
    siblings[siblings.index(node)] = upper
    node.tokens, node.parent, node.depth = node.tokens[at:], upper, node.depth + at


def _insert(node: Node, tokens: list[int]) -> Node:
    """The node at whose end `tokens`, read from the end of `node`, end."""
    while len(tokens):
        child = next((child for child in node.children if child.tokens[0] == tokens[0]), None)
        if child is None:
            child = Node(tokens, node, node.depth + len(node.tokens))
            node.children.append(child)
            return child
        common = common_length(child.tokens, tokens)
        if common < len(child.tokens):
            _split(child, common)
            child = child.parent
        node, tokens = child, tokens[common:]
    return node


def _chain(top: Node, bottom: Node) -> list[Node]:
    """Nodes from below `top` down to `bottom`."""
    nodes = []
    while bottom is not top:
        nodes.append(bottom)
        bottom = bottom.parent
    return nodes[::-1]


def _depth_first(roots: list[Node]) -> tuple[list[Node], int]:
    """Nodes in order, with `start` and `stop` set; roots hold no tokens and are left out."""
    nodes: list[Node] = []
    position = 0
    stack = [(child, False) for root in reversed(roots) for child in reversed(root.children)]
    while stack:
        node, is_done = stack.pop()
        if is_done:
            node.stop = position
            continue
        node.start = position
        position += len(node.tokens)
        nodes.append(node)
        stack.append((node, True))
        stack += [(child, False) for child in reversed(node.children)]
    return nodes, position


def build(sample: TokenizedSample, sharing: str) -> Forest:
    """The forest of one sample."""
    check_sharing(sharing)
    roots: list[Node] = []
    ends: list[tuple[Node, Node]] = []
    for prompt in sample.prompts:
        for side, response in enumerate((sample.chosen, sample.rejected)):
            if not roots or sharing == "none" or (sharing == "pair" and side == 0):
                roots.append(Node([], None))
            top = _insert(roots[-1], prompt)
            ends.append((top, _insert(top, response)))
    chains = [_chain(top, bottom) for top, bottom in ends]
    for chain in chains:
        for node in chain:
            node.is_response = True
    nodes, num_tokens = _depth_first(roots)
    return Forest(nodes, chains, num_tokens)
