"""What is used of sentence-transformers 6, imported in one place: an error says what is wrong with the installation."""

from __future__ import annotations

import torch

from abc_rag.errors import MissingExtraError

__all__ = ["Router", "SentenceTransformer", "StaticEmbedding", "Transformer", "first_line", "unusable"]


def first_line(error: BaseException) -> str:
    """Type and first line of an error of the library, for a message."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no reason given'])[0][:300]}"


def unusable(error: BaseException) -> MissingExtraError:
    """Why the library, or what a model needs beside it, cannot be imported; and what mends it."""
    reasons = [error]
    while (cause := reasons[-1].__cause__ or reasons[-1].__context__) is not None:
        reasons.append(cause)
    missing = next((one.name or "" for one in reasons if isinstance(one, ModuleNotFoundError)), None)
    if any("torchvision" in str(one) for one in reasons) and missing != "torchvision":
        build = torch.__version__.partition("+")[2]
        index = f" --index-url https://download.pytorch.org/whl/{build}" if build else ""
        return MissingExtraError(
            f"torchvision cannot be imported beside torch {torch.__version__} ({first_line(error)}); install the build "
            f"made for it: pip install --force-reinstall --no-deps torchvision{index}, or pip uninstall torchvision "
            "where no model of pictures needs it"
        )
    if missing is not None and missing.partition(".")[0] == "sentence_transformers":
        return MissingExtraError(
            "sentence-transformers 6 is not installed; install it with: pip install 'abc-rag[sentence-transformers]'"
        )
    if missing is not None:
        return MissingExtraError(
            f"a package that is needed is not installed ({first_line(error)}); for models of pictures that is most "
            "often: pip install 'sentence-transformers[image]'"
        )
    return MissingExtraError(
        f"sentence-transformers cannot be imported ({first_line(error)}); bring it up to date: "
        "pip install --upgrade 'abc-rag[sentence-transformers]'"
    )


try:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Router, Transformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
except (AttributeError, ImportError, OSError, RuntimeError) as error:
    raise unusable(error) from error
