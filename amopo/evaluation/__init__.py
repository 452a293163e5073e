"""What a model does: margins on preference pairs, scores of the text that it generates."""
