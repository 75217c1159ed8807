"""How long an answer will be, before it begins: a distribution of its tokens, never an error."""
