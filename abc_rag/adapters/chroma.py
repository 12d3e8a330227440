"""ABC as an embedding function of Chroma, for those who call Chroma themselves.

.. code-block:: python

    import chromadb
    import numpy
    from abc_rag.adapters.chroma import ABCEmbeddingFunction, ABCImageLoader

    client = chromadb.PersistentClient("store")
    function = ABCEmbeddingFunction(model="abc-mini")
    collection = client.get_or_create_collection("photos", embedding_function=function, data_loader=ABCImageLoader())
    collection.upsert(ids=["1"], documents=["a pig to the left of a car"])
    collection.add(ids=["2"], uris=["pig.jpg"])
    collection.upsert(ids=["3"], images=[numpy.asarray(picture.convert("RGB"))])
    collection.query(query_texts=["a pig"])

Chroma stores the function's name and settings with the collection. Another program imports this module, which
registers the function, and says ``client.get_collection("photos")``, without a function: then Chroma makes it from what
is stored, and vectors of two models cannot meet. Where the module was not imported, the first text or picture makes
Chroma say that the embedding function ``abc_rag.adapters.chroma`` was not found.

What Chroma (1.5.9) does not do, so that callers have to:

*   A function given to ``get_collection`` or ``get_or_create_collection`` takes the stored one's place without being
    compared with it. `ABCEmbeddingFunction.check` compares.
*   Chroma's own ``ImageLoader`` hands over the numbers of a file as they are: inks, palette indices, CIELAB, pictures
    that lie on their side. `ABCImageLoader` opens pictures as everything else here does. Chroma does not store it
    with the collection, so it is given to ``get_collection`` as well.
*   ``collection.modify(configuration={"embedding_function": ...})`` stores the new settings before it asks whether they
    may follow the old ones. The error says how to take them back.

`abc_rag.ChromaStore` looks after both, and takes pictures by path, each with its own instruction.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np
from chromadb.api.types import Embeddable, EmbeddingFunction, Embeddings, Space
from chromadb.utils.embedding_functions import register_embedding_function

from abc_rag.adapters.chroma_pictures import REMEDY, ABCImageLoader, picture_of
from abc_rag.adapters.chroma_settings import (
    check_settings,
    differences_of,
    embedder_of,
    settings_as_call,
    settings_of,
    with_defaults,
)
from abc_rag.embedding.embedder import Embedder
from abc_rag.embedding.load import default_model, load_embedder, local_revision
from abc_rag.embedding.options import EmbedderOptions
from abc_rag.embedding.threads import ForkSafeLock
from abc_rag.errors import FingerprintMismatchError, ImageError, InputError
from abc_rag.images.open import open_image
from abc_rag.models.abc.loader import ABCCheckpoint
from abc_rag.types import Image, Input, InstructedImage, Text

if TYPE_CHECKING:
    from chromadb.api.models.CollectionCommon import CollectionCommon
    from typing_extensions import Unpack

    from abc_rag.embedding.options import EmbedderKeywords

__all__ = ["ABCEmbeddingFunction", "ABCImageLoader"]

# Chroma's error where this module was not imported quotes nothing but this name.
_NAME = "abc_rag.adapters.chroma"


class ABCEmbeddingFunction(EmbeddingFunction[Embeddable]):
    """Embeds Chroma's documents and images with an ABC model.

    A document (``str``) is always a text, whatever it looks like. An image is a numpy array of uint8, height x width x
    3, in RGB. Other arrays are refused: four channels may be RGBA or CMYK, one may be grey or a palette's indices, and
    an array does not say which. All vectors are of one space. Queries are embedded as queries, for models that tell
    them from documents.

    The model is loaded by the first text or picture. Chroma makes a function anew for every call on a collection that
    was opened without one, so functions of equal settings share one loaded model, and the last two models used stay
    loaded.

    Chroma has no place for an instruction with a query. The one given here applies to every image, added or asked. For
    one of its own, compute the vector and pass it on:

    .. code-block:: python

        vector = function.embedder.embed([InstructedImage("photo.jpg", "what is on the left?")])
        collection.query(query_embeddings=vector)

    Args:
        model: As for `abc_rag.load_embedder`: ``"abc-mini"``, ``"abc"``, a folder, an `abc_rag.ABCCheckpoint`, or a
            model of another family. If not given: the environment variable ``ABC_RAG_MODEL``, else ``"abc"``. Folders
            are stored as absolute paths.
        instruction: What to look at in every image. An empty one is still an instruction.
        **options: As for `abc_rag.load_embedder`.

    Raises:
        InputError: A setting is unusable, or there is no such folder.
        MissingExtraError: ``weights`` needs a package that is not installed.
        CheckpointError: A folder of an `abc_rag.ABCCheckpoint` is missing.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | ABCCheckpoint | None = None,
        *,
        instruction: str | None = None,
        **options: Unpack[EmbedderKeywords],
    ) -> None:
        model = default_model() if model is None else model
        if not isinstance(model, (str, os.PathLike, ABCCheckpoint)):
            raise InputError(f"model must be a name, a folder or an abc_rag.ABCCheckpoint, not {type(model).__name__}")
        chosen = EmbedderOptions(**options)
        config = settings_of(model, chosen, instruction)
        check_settings(config)
        # Chroma answers an error in `get_config` by storing no configuration at all: everything is checked here.
        load_embedder(model, **options)
        self._config: dict[str, Any] = config | {"revision": local_revision(model, **options)}
        self._embedder: Embedder | None = None

    def __reduce__(self) -> tuple[Callable[[dict[str, Any]], ABCEmbeddingFunction], tuple[dict[str, Any]]]:
        """Copies and pickles travel as settings; they load the model where they are used."""
        return ABCEmbeddingFunction.build_from_config, (self.get_config(),)

    def __repr__(self) -> str:
        return settings_as_call(self._config)

    @property
    def embedder(self) -> Embedder:
        """The `abc_rag.Embedder` that computes. Asking for it loads no weights.

        Raises:
            InputError: The stored settings cannot be used here, for example because the folder has moved.
        """
        if self._embedder is None:
            try:
                self._embedder = _shared_embedder(json.dumps(self._config | {"instruction": None}, sort_keys=True))
            except InputError as error:
                raise InputError(
                    f"{error}. If these settings came from a collection, give other ones to get_collection: "
                    "embedding_function=ABCEmbeddingFunction(model=..., device=...)"
                ) from error
        return self._embedder

    def __call__(self, input: Embeddable) -> Embeddings:
        """Embed texts and images, in any mix.

        Args:
            input: Strings and arrays.

        Returns:
            One unit vector of float32 an input, in order.

        Raises:
            InputError: An input is neither a ``str`` nor such an array, or there is none; the message says which.
            ImageError: A picture exceeds a limit; the message says which picture.
            FingerprintMismatchError: The model's files are not those that the stored settings were made with.
        """
        return self._embedded(input, "document")

    def embed_query(self, input: Embeddable) -> Embeddings:
        """Embed what Chroma is asked for, as queries; see `__call__`."""
        return self._embedded(input, "query")

    def _embedded(self, input: Embeddable, role: str) -> Embeddings:
        if isinstance(input, (str, bytes, np.ndarray)) or not isinstance(input, Sequence):
            raise InputError(f"input must be a list of texts and images, not a single {type(input).__name__}")
        if not input:
            raise InputError("input is empty; pass at least one text or image")
        inputs = [_typed(position, value, self._config["instruction"], role) for position, value in enumerate(input)]
        try:
            vectors = self.embedder.embed(inputs)
        except ImageError:
            _raise_with_position(inputs)
            raise
        found, wanted = self.embedder.fingerprint.revision, self._config["revision"]
        if wanted is not None and wanted != found:
            raise FingerprintMismatchError(
                f"the files of model {self._config['model']!r} have changed: these settings were made with revision "
                f"{wanted}, and they are of revision {found}; bring the files back, or embed everything again into a "
                "new collection"
            )
        return list(vectors)

    def check(self, collection: CollectionCommon[Any]) -> None:
        """Refuse a collection whose vectors another model or other settings made.

        Chroma itself does not compare a function given to ``get_collection`` or ``get_or_create_collection`` with what
        the collection was made with. Device, dtype and attention may differ. Loads no weights.

        Args:
            collection: A Chroma collection, as just got.

        Raises:
            FingerprintMismatchError: Vectors of this function do not belong into the collection, or it does not say
                which do.
        """
        stored = collection.configuration_json.get("embedding_function") or {}
        if stored.get("name") != _NAME:
            raise FingerprintMismatchError(
                f"collection {collection.name!r} was not created with an ABCEmbeddingFunction, so nothing says which "
                "model made its vectors; create another collection with this one"
            )
        differences = differences_of(stored.get("config") or {}, self._config)
        if differences:
            raise FingerprintMismatchError(
                f"collection {collection.name!r} holds vectors of other settings: {differences}; get it without an "
                "embedding_function, which then is the stored one, or use another collection"
            )

    @staticmethod
    def name() -> str:
        """What Chroma stores and finds the function by: ``"abc_rag.adapters.chroma"``."""
        return _NAME

    def default_space(self) -> Space:
        """``"cosine"``."""
        return "cosine"

    def supported_spaces(self) -> list[Space]:
        """All three: between unit vectors, cosine, squared L2 and inner product give one order."""
        return ["cosine", "l2", "ip"]

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON, and the revision of the model's files where they are local. Holds no secrets."""
        config: dict[str, Any] = json.loads(json.dumps(self._config))
        return config

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> ABCEmbeddingFunction:
        """A function of stored settings. Whether they can be used here is found out by the first text or picture.

        Args:
            config: What `get_config` gave.

        Returns:
            A function of equal settings, which computes only with files of the stored revision.

        Raises:
            InputError: These are not the settings of an ABCEmbeddingFunction.
        """
        check_settings(config)
        function = ABCEmbeddingFunction.__new__(ABCEmbeddingFunction)
        function._config = with_defaults(config)
        function._embedder = None
        return function

    @staticmethod
    def validate_config(config: dict[str, Any]) -> None:
        """Refuse what `get_config` cannot have given.

        Raises:
            InputError: These are not the settings of an ABCEmbeddingFunction.
        """
        check_settings(config)

    def validate_config_update(self, old_config: dict[str, Any], new_config: dict[str, Any]) -> None:
        """Refuse settings whose vectors cannot stand beside the old ones'. Device, dtype and attention may change.

        A folder may move, if its files are the same.

        Raises:
            InputError: Model, weights, image tokens, instruction, or the revision of the files differ.
        """
        differences = differences_of(old_config, new_config)
        if differences:
            raise InputError(
                f"a collection keeps the settings that made its vectors ({differences}); use another collection. "
                "Chroma has stored the new settings before asking: take them back with "
                f"collection.modify(configuration={{'embedding_function': {settings_as_call(old_config)}}})"
            )


register_embedding_function(ABCEmbeddingFunction)  # type: ignore[no-untyped-call]


# --- Inputs -----------------------------------------------------------------------------------------------


def _typed(position: int, value: object, instruction: str | None, role: str) -> Input:
    if isinstance(value, str):
        return Text(value, role=role)
    if not isinstance(value, np.ndarray):
        raise InputError(
            f"input {position} is a {type(value).__name__}; pass a text as a str, and a picture as a numpy array: "
            f"{REMEDY} of a PIL image"
        )
    picture = picture_of(position, value)
    return Image(picture, role=role) if instruction is None else InstructedImage(picture, instruction, role=role)


def _raise_with_position(inputs: Sequence[Input]) -> None:
    """Every array is called "PIL image" further down: find the one that was refused."""
    for position, item in enumerate(inputs):
        if isinstance(item, (Image, InstructedImage)):
            try:
                open_image(item.source)
            except ImageError as error:
                raise type(error)(f"input {position}", error.reason) from None


# --- Loaded models ---------------------------------------------------------------------------------------------


# Embedders by their settings, the files' revision among them: files that changed meanwhile are loaded anew.
_ALIVE: WeakValueDictionary[str, Embedder] = WeakValueDictionary()
_RECENT: deque[Embedder] = deque(maxlen=2)  # keeps them alive between calls on a reopened collection
_MAKING = ForkSafeLock()


def _shared_embedder(settings: str) -> Embedder:
    with _MAKING:
        embedder = _ALIVE.get(settings)
        if embedder is None:
            embedder = embedder_of(json.loads(settings))
            _ALIVE[settings] = embedder
        if embedder in _RECENT:
            _RECENT.remove(embedder)
        _RECENT.append(embedder)
        return embedder
