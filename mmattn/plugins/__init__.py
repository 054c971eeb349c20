"""mmattn inside other people's evaluation programs. Nothing here is imported before such a program asks for it."""

from typing import Any


def manifest() -> Any:
    """What lmms-eval reads from the entry point `lmms_eval.models`: the model "mmattn" and where its class is."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("mmattn", simple_class_path="mmattn.plugins.lmms.Mmattn")
