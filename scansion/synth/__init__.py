"""Synthetic ground truth: activations made from a known dictionary whose features have known position profiles.

planted = PlantedDictionary.plant(SynthConfig(bound=0.5))
train_store = plant_store(planted, "train", folder / "train")
held_out = plant_store(planted, "held_out", folder / "held_out")
...                                                # train any SAE on train_store, with use_position_0
evaluate_recovery([LoadedSAE("mine", sae, metadata)], planted, held_out)
"""

from scansion.synth.config import ProfileMix, SynthConfig
from scansion.synth.dictionary import PlantedDictionary
from scansion.synth.generation import PlantedData
from scansion.synth.store import plant_store, planted_identity

__all__ = [
    "PlantedData",
    "PlantedDictionary",
    "ProfileMix",
    "SynthConfig",
    "plant_store",
    "planted_identity",
]
